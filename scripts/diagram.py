"""Draws a request's way through the code: writes `docs/request.svg`, which docs/architecture.md shows.

    python scripts/diagram.py

Only the standard library is used. The picture follows the reader's colour scheme, light or dark.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

WIDTH, MARGIN, TITLE_WIDTH = 920, 12, 168
BOX_HEIGHT, BAND_HEIGHT, GAP = 46, 78, 34

STYLE = """
text { font: 14px system-ui, sans-serif; fill: #1f2328; }
.title { font-weight: 600; }
.file { font: 12px ui-monospace, monospace; fill: #59636e; }
.value { font: 600 13px ui-monospace, monospace; fill: #0969da; }
.band { fill: #f6f8fa; stroke: #d1d9e0; }
.hall { fill: #ddf4ff; stroke: #54aeff; }
.box { fill: #ffffff; stroke: #818b98; }
.arrow { stroke: #59636e; stroke-width: 1.5; fill: none; }
.head { fill: #59636e; }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc; }
  .file { fill: #9198a1; }
  .value { fill: #4493f8; }
  .band { fill: #151b23; stroke: #3d444d; }
  .hall { fill: #121d2f; stroke: #1f6feb; }
  .box { fill: #0d1117; stroke: #656c76; }
  .arrow { stroke: #9198a1; }
  .head { fill: #9198a1; }
}
"""


@dataclass(frozen=True)
class Band:
    """One part of the way: its name, its place in the code, its boxes, and the value that leaves it."""

    title: str
    place: str
    boxes: tuple[tuple[str, str], ...]
    leaves: str = ""
    is_hall: bool = False
    is_chain: bool = False
    """Whether each box hands over to the next, instead of standing beside it."""


BANDS = (
    Band(
        "Doors in",
        "JSON ends here",
        (("HTTP", "server/protocols/"), ("Python", "llm.py"), ("command line", "cli/")),
        "Ask",
    ),
    Band(
        "The hall, in",
        "answer/ask.py",
        (
            ("fetch, decode, tile", "prompt/"),
            ("template, tokenise", "prompt/"),
            ("grammar", "sampling/grammar.py"),
            ("adapter", "lora/pool.py"),
        ),
        "Request, one for each choice",
        is_hall=True,
    ),
    Band(
        "The engine",
        "engine/service.py",
        (
            ("schedule", "scheduler.py"),
            ("batch", "batch.py"),
            ("run", "runner.py"),
            ("draw", "draw.py"),
            ("update", "scheduler.py"),
        ),
        "TokenOutput, at each step",
        is_chain=True,
    ),
    Band(
        "The hall, out",
        "answer/delta.py",
        (
            ("detokenise", "output/"),
            ("stop strings", "output/"),
            ("reasoning", "output/"),
            ("tool calls", "output/"),
        ),
        "Delta",
        is_hall=True,
        is_chain=True,
    ),
    Band(
        "Doors out",
        "of the same deltas",
        (("events, JSON", "server/protocols/"), ("Completion", "answer/completion.py"), ("console", "cli/chat/")),
    ),
)


def svg() -> str:
    """Return the picture."""
    height = len(BANDS) * (BAND_HEIGHT + GAP) - GAP + 2 * MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'role="img" aria-label="A request\'s way through the code">',
        f"<style>{STYLE}</style>",
    ]
    for number, band in enumerate(BANDS):
        lines += draw(band, MARGIN + number * (BAND_HEIGHT + GAP))
    return "\n".join([*lines, "</svg>"]) + "\n"


def draw(band: Band, top: int) -> Iterator[str]:
    """Yield the elements of a band whose upper edge is at `top`, and of the arrow that leaves it."""
    yield rectangle(MARGIN, top, WIDTH - 2 * MARGIN, BAND_HEIGHT, "hall" if band.is_hall else "band")
    yield text(MARGIN + 14, top + 35, band.title, "title")
    yield text(MARGIN + 14, top + 54, band.place, "file")
    left, gap = MARGIN + TITLE_WIDTH, 26 if band.is_chain else 12
    width = (WIDTH - MARGIN - 14 - left - gap * (len(band.boxes) - 1)) / len(band.boxes)
    y = top + (BAND_HEIGHT - BOX_HEIGHT) // 2
    for index, (name, place) in enumerate(band.boxes):
        x = left + index * (width + gap)
        yield rectangle(x, y, width, BOX_HEIGHT, "box")
        yield text(x + width / 2, y + 20, name, "", "middle")
        yield text(x + width / 2, y + 37, place, "file", "middle")
        if band.is_chain and index:
            yield arrow(x - gap + 3, y + BOX_HEIGHT / 2, x - 3, y + BOX_HEIGHT / 2)
    if band.leaves:
        bottom, middle = top + BAND_HEIGHT, WIDTH / 2
        yield arrow(middle, bottom + 3, middle, bottom + GAP - 3)
        yield text(middle + 14, bottom + GAP / 2 + 5, band.leaves, "value")


def rectangle(x: float, y: float, width: float, height: float, kind: str) -> str:
    """Return a rectangle with round corners."""
    return f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6"/>'


def text(x: float, y: float, content: str, kind: str, anchor: str = "start") -> str:
    """Return a line of text."""
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(content)}</text>'


def arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    """Return an arrow to the right or downwards."""
    head = f"{to_x:g},{to_y:g} "
    head += f"{to_x - 7:g},{to_y - 4:g} {to_x - 7:g},{to_y + 4:g}" if y == to_y else ""
    head += f"{to_x - 4:g},{to_y - 7:g} {to_x + 4:g},{to_y - 7:g}" if x == to_x else ""
    return f'<path class="arrow" d="M{x:g} {y:g}L{to_x:g} {to_y:g}"/><polygon class="head" points="{head}"/>'


if __name__ == "__main__":
    (ROOT / "docs/request.svg").write_text(svg(), encoding="utf-8")
