"""Metrics of places: boxes from 0 to 1000, clicks as fractions or pixels of the image."""

from __future__ import annotations

import re
from fractions import Fraction

from ternvl.evaluation.items import BenchmarkItem

Edges = tuple[float, float, float, float]
_BOX = re.compile(r"\[([^\[\],]*),([^\[\],]*),([^\[\],]*),([^\[\],]*)\]")
_NUMBER = re.compile(r"\s*[-+]?[0-9]{1,9}(?:\.[0-9]{1,18})?\s*")
_CLICK = re.compile(r"x=([0-9]{1,9}(?:\.[0-9]{1,18})?), y=([0-9]{1,9}(?:\.[0-9]{1,18})?)")


def iou(answer: str, item: BenchmarkItem) -> float:
    """Return 1 if the first box of the answer overlaps with the true box by at least half of their union."""
    assert item.box is not None
    found = _box_in_pixels(answer, item.size)
    return float(found is not None and overlap(found, item.box) >= 0.5)


def point(answer: str, item: BenchmarkItem) -> float:
    """Return 1 if the click of the answer, or the middle of its first box, is within the true box."""
    assert item.box is not None
    place = _point_in_pixels(answer, item.size)
    return float(place is not None and _holds(item.box, *place))


def _holds(box: Edges, x: float, y: float) -> bool:
    return box[0] <= x <= box[2] and box[1] <= y <= box[3]


def overlap(a: Edges, b: Edges) -> float:
    """Return the intersection over union of two boxes (x1, y1, x2, y2); 0 if neither has an area."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0, width) * max(0, height)
    areas = sum(max(0, box[2] - box[0]) * max(0, box[3] - box[1]) for box in (a, b))
    return shared / (areas - shared) if areas > shared else 0.0


def _box_in_pixels(answer: str, size: tuple[int, int]) -> Edges | None:
    """Return the first box of an answer. Four numbers whose sum is below 4 are fractions, others thousandths."""
    found = _BOX.search(answer)
    if found is None or not all(_NUMBER.fullmatch(text) for text in found.groups()):
        return None
    x1, y1, x2, y2 = (Fraction(text.strip()) for text in found.groups())
    scale = 1000 if x1 + y1 + x2 + y2 >= 4 else 1
    width, height = Fraction(size[0], scale), Fraction(size[1], scale)
    return float(x1 * width), float(y1 * height), float(x2 * width), float(y2 * height)


def _point_in_pixels(answer: str, size: tuple[int, int]) -> tuple[float, float] | None:
    """Return the click of an answer, in fractions of the image or, beyond 1, in pixels; else the middle of its box."""
    click = _CLICK.search(answer)
    if click is None:
        box = _box_in_pixels(answer, size)
        return None if box is None else ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    x, y = map(Fraction, click.groups())
    return (float(x), float(y)) if max(x, y) > 1 else (float(x * size[0]), float(y * size[1]))
