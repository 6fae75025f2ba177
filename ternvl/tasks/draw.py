"""Draws the results of tasks into a copy of their image."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ternvl.errors import RequestError
from ternvl.limits import ImageLimits
from ternvl.tasks.pictures import ImageSource, open_picture
from ternvl.tasks.results import Action, Box, Finding, Point

_COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#000075")


def draw(image: ImageSource, results: Any, *, limits: ImageLimits | None = None) -> Image.Image:
    """Return a copy of an image with results in it: boxes, points, actions and findings, one or a sequence of them.

    Boxes have their labels, failed findings their checks; actions without a place are left out. Each has a colour of
    its own. Raises RequestError for a result of another type, ImageError for an image that cannot be used.
    """
    picture = open_picture(image, limits or ImageLimits()).image.copy()
    canvas = ImageDraw.Draw(picture)
    for mark, color in zip(_marks(results), cycle(_COLORS), strict=False):
        _draw(canvas, mark, color, max(1, round(min(picture.size) / 150)))
    return picture


def _marks(results: Any) -> Iterator[Box | Point | Action]:
    match results:
        case Box() | Point() | Action():
            yield results
        case Finding():
            yield from (Box(*box.xyxy, results.check) for box in results.boxes)
        case list() | tuple():
            for result in results:
                yield from _marks(result)
        case _:
            kinds = "boxes, points, actions and findings"
            raise RequestError(f"A value of type {type(results).__name__} cannot be drawn, only {kinds}.")


def _draw(canvas: ImageDraw.ImageDraw, mark: Box | Point | Action, color: str, width: int) -> None:
    match mark:
        case Box():
            canvas.rectangle((mark.x1, mark.y1, mark.x2 - 1, mark.y2 - 1), outline=color, width=width)
            _write(canvas, mark, color, width)
        case Point():
            _cross(canvas, mark, color, width)
        case Action():
            for place in filter(None, (mark.point, mark.end)):
                _cross(canvas, place, color, width)
            if mark.point and mark.end:
                canvas.line((mark.point.x, mark.point.y, mark.end.x, mark.end.y), fill=color, width=width)


def _cross(canvas: ImageDraw.ImageDraw, place: Point, color: str, width: int) -> None:
    """Draw a cross whose middle is the pixel, with a ring around it."""
    x, y, arm = place.x, place.y, 4 * width
    canvas.line((x - arm, y, x + arm, y), fill=color, width=width)
    canvas.line((x, y - arm, x, y + arm), fill=color, width=width)
    canvas.ellipse((x - arm, y - arm, x + arm, y + arm), outline=color, width=width)


def _write(canvas: ImageDraw.ImageDraw, box: Box, color: str, width: int) -> None:
    """Write the label of a box above it, or into it if there is no room."""
    if not box.label:
        return
    font = ImageFont.load_default(max(10, 8 * width))
    left, top, right, bottom = canvas.textbbox((0, 0), box.label, font=font)
    height = bottom - top + 2
    x = max(0, min(box.x1, round(canvas.im.size[0] - (right - left) - 2)))
    y = box.y1 - height if box.y1 >= height else box.y1
    canvas.rectangle((x, y, x + right - left + 2, y + height), fill=color)
    canvas.text((x + 1 - left, y + 1 - top), box.label, fill="white", font=font)
