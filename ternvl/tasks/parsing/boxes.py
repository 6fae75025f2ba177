"""Parses grounding answers: `<ref>label</ref><box>[[x1, y1, x2, y2]]</box>`, from 0 to 1000 of width and height.

The tags may be missing, because some servers drop special tokens, and there may be other text around the boxes. As in
the official evaluation (OpenGVLab/InternVL, `evaluate_grounding.py`), four numbers whose sum is below 4 are fractions
of the image. All arithmetic is exact.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from ternvl.errors import UnparsableAnswer
from ternvl.tasks.results import Box, Point

NUMBER = r"\s*([-+]?[0-9]{1,9}(?:\.[0-9]{1,9})?)\s*"
_PLAIN = NUMBER.replace("(", "(?:", 1)
_ONE = rf"\[{_PLAIN},{_PLAIN},{_PLAIN},{_PLAIN}\]"
_BOXES = re.compile(rf"(?:<box>\s*)?(?:\[\s*{_ONE}(?:\s*,\s*{_ONE})*\s*\]|{_ONE})(?:\s*</box>)?")
_FOUR = re.compile(rf"\[{NUMBER},{NUMBER},{NUMBER},{NUMBER}\]")
_POINT = re.compile(rf"\[{NUMBER},{NUMBER}\]")
_BROKEN = re.compile(r"</?box>|\[\s*(?:[-+.0-9\[]|$)|^\s*[\],]\s*[\[\],]?")
_TAG = re.compile(r"</?ref>")


@dataclass(frozen=True, slots=True)
class Region:
    """A box in fractions of the image, which may lie beyond its edges."""

    label: str
    edges: tuple[Fraction, Fraction, Fraction, Fraction]


def regions(text: str) -> list[Region]:
    """Return the boxes of an answer. Raises UnparsableAnswer if it has none, or a piece of one that is not complete."""
    found: list[Region] = []
    rest, end = [], 0
    for match in _BOXES.finditer(text):
        before = text[end : match.start()]
        rest.append(before)
        end = match.end()
        found += [Region(_label(before), _fractions(four)) for four in _FOUR.findall(match[0])]
    rest.append(text[end:])
    if not found:
        raise UnparsableAnswer("has no box of the form [[x1, y1, x2, y2]]", text)
    if any(map(_BROKEN.search, rest)):
        raise UnparsableAnswer("has a box that is not complete", text)
    return found


def boxes(text: str, size: tuple[int, int], label: str = "") -> tuple[Box, ...]:
    """Return the boxes of an answer in pixels of an image of (width, height) `size`.

    An edge is the nearest border between pixels, halves upwards. Edges beyond the image are moved to its own, and a box
    has at least one pixel. Boxes without a label of their own get `label`. Raises UnparsableAnswer, also for a box that
    lies beyond the image or whose second corner is before its first.
    """
    return tuple(_to_box(region, size, label, text) for region in regions(text))


def point(text: str, size: tuple[int, int]) -> Point:
    """Return the pixel of `[x, y]`, or that in the middle of the first box. Raises UnparsableAnswer."""
    if (pair := _POINT.search(text)) and not _BOXES.search(text):
        x, y = (Fraction(number) for number in pair.groups())
        scale = 1 if max(x, y) <= 1 else 1000
        return pixel(x / scale, y / scale, size)
    region = regions(text)[0]
    _to_box(region, size, "", text)
    x1, y1, x2, y2 = (min(max(edge, Fraction(0)), Fraction(1)) for edge in region.edges)
    return pixel((x1 + x2) / 2, (y1 + y2) / 2, size)


def pixel(x: Fraction, y: Fraction, size: tuple[int, int]) -> Point:
    """Return the pixel that contains a place given in fractions of the image, or the nearest one if it is beyond."""
    width, height = size
    return Point(_within(math.floor(x * width), width), _within(math.floor(y * height), height))


def _within(index: int, length: int) -> int:
    return min(max(index, 0), length - 1)


def _fractions(numbers: tuple[str, ...]) -> tuple[Fraction, Fraction, Fraction, Fraction]:
    x1, y1, x2, y2 = map(Fraction, numbers)
    scale = 1000 if x1 + y1 + x2 + y2 >= 4 else 1
    return x1 / scale, y1 / scale, x2 / scale, y2 / scale


def _label(before: str) -> str:
    """Return the text of the last line before a box, without tags and punctuation."""
    last = before.rstrip().rpartition("\n")[2]
    return _TAG.sub("", last).strip(" \t,;:.-=`*")


def _to_box(region: Region, size: tuple[int, int], label: str, text: str) -> Box:
    x1, y1, x2, y2 = region.edges
    if x1 > x2 or y1 > y2:
        raise UnparsableAnswer("has a box whose second corner is before its first", text)
    if max(x1, y1) > 1 or min(x2, y2) < 0:
        raise UnparsableAnswer("has a box beyond the image", text)
    left, right = _span(x1, x2, size[0])
    top, bottom = _span(y1, y2, size[1])
    return Box(left, top, right, bottom, region.label or label)


def _span(low: Fraction, high: Fraction, length: int) -> tuple[int, int]:
    first, last = (min(max(math.floor(edge * length + Fraction(1, 2)), 0), length) for edge in (low, high))
    if first < last:
        return first, last
    first = _within(math.floor(low * length), length)
    return first, first + 1
