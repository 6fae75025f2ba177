"""Writes results into a page between two comments, `<!-- NAME:begin -->` and `<!-- NAME:end -->`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path


def write_between(page: Path, name: str, text: str) -> None:
    """Replace what stands between the comments of `name`. Raises ValueError if the page lacks them."""
    old = page.read_text(encoding="utf-8")
    found = _find(name, old, page)
    new = f"{old[: found.start(1)]}{text.rstrip()}\n{old[found.end(1) :]}"
    page.write_text(new, encoding="utf-8")


def rows_between(page: Path, name: str) -> dict[str, list[str]]:
    """Return the rows of the table between the comments of `name`, by their first cells."""
    text = _find(name, page.read_text(encoding="utf-8"), page)[1]
    rows = [re.split(r" (?<!\\)\| ", line[2:-2]) for line in text.splitlines()[2:] if line.startswith("| ")]
    return {cells[0]: [cell.replace("\\|", "|") for cell in cells] for cells in rows}


def _find(name: str, text: str, page: Path) -> re.Match[str]:
    found = re.search(rf"<!-- {name}:begin -->\n(.*?)<!-- {name}:end -->", text, re.DOTALL)
    if not found:
        raise ValueError(f"{page} has no comments {name}:begin and {name}:end.")
    return found


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")
