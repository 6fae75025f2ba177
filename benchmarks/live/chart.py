"""Draws lines over time as SVG, one panel below the other, in light and dark pages alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 190, 64, 16, 34, 26
"""Pixels of a panel, and of its margins."""
COLOURS = ("#d9480f", "#4c6ef5", "#2b8a3e", "#868e96", "#9c36b5")
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """Lines over minutes or another unit, from zero."""

    title: str
    lines: Mapping[str, Points]
    """The points of each line by its name: minutes, or what `unit` says, and a value."""
    limit: float | None = None
    """A value that is marked by a dotted line."""
    unit: str = "min"


def draw(panels: Sequence[Panel], path: Path) -> None:
    """Write the panels as an SVG file."""
    height = HEIGHT * len(panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        *(f'<g transform="translate(0 {HEIGHT * number})">{_panel(panel)}</g>' for number, panel in enumerate(panels)),
        "</svg>\n",
    ]
    path.write_text("\n".join(parts), encoding="utf-8")


def _panel(panel: Panel) -> str:
    points = [point for line in panel.lines.values() for point in line]
    end = max([x for x, _ in points], default=1.0) or 1.0
    top = _round_up(max([*(y for _, y in points), panel.limit or 0.0], default=1.0))

    def place(x: float, y: float) -> str:
        across = LEFT + (WIDTH - LEFT - RIGHT) * x / end
        return f"{across:.1f},{HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * y / top:.1f}"

    parts = [f'<text x="{LEFT}" y="16" font-weight="bold" fill="#212529">{escape(panel.title)}</text>']
    parts += [_level(top * share / 4, place(0, top * share / 4)) for share in range(5)]
    parts += [_minute(end * share / 5, place(end * share / 5, 0), panel.unit, is_last=share == 5) for share in range(6)]
    if panel.limit is not None:
        ends = f"{place(0, panel.limit)} {place(end, panel.limit)}"
        parts.append(f'<polyline points="{ends}" fill="none" stroke="#212529" stroke-dasharray="3 3"/>')
    for number, (name, line) in enumerate(panel.lines.items()):
        shown, colour = " ".join(place(x, y) for x, y in line), COLOURS[number % len(COLOURS)]
        parts.append(f'<polyline points="{shown}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        parts.append(
            f'<text x="{WIDTH - RIGHT - 150 * number}" y="16" text-anchor="end" fill="{colour}">{escape(name)}</text>'
        )
    return "\n".join(parts)


def _level(value: float, at: str) -> str:
    y = at.partition(",")[2]
    return (
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" stroke="#dee2e6"/>'
        f'<text x="{LEFT - 6}" y="{float(y) + 4:.1f}" text-anchor="end" fill="#495057">{value:g}</text>'
    )


def _minute(value: float, at: str, unit: str, *, is_last: bool) -> str:
    x, anchor = at.partition(",")[0], "end" if is_last else "middle"
    return f'<text x="{x}" y="{HEIGHT - 8}" text-anchor="{anchor}" fill="#495057">{value:.3g} {unit}</text>'


def _round_up(value: float) -> float:
    """Return the next value of 1, 2, 4 or 8 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(step * power for step in (1, 2, 4, 8, 10) if step * power >= value)
