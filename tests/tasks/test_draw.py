"""What is drawn, and that drawing leaves the image as it is."""

from __future__ import annotations

import pytest
from PIL import Image, ImageChops

from ternvl.errors import ImageError, RequestError
from ternvl.tasks import Action, Box, Finding, Point, draw

WHITE = Image.new("RGB", (200, 100), "white")


def changed(*results: object, image: Image.Image = WHITE) -> tuple[int, int, int, int] | None:
    """The box of what drawing changes."""
    drawn = draw(image, list(results))
    assert drawn.size == image.size
    return ImageChops.difference(image, drawn).getbbox()


def test_a_box_is_drawn_along_its_edges() -> None:
    assert changed(Box(20, 30, 60, 70)) == (20, 30, 60, 70)
    assert draw(WHITE, Box(20, 30, 60, 70)).getpixel((40, 50)) == (255, 255, 255)
    assert WHITE.getcolors() == [(20_000, (255, 255, 255))]


def test_a_label_stands_above_its_box_or_in_it() -> None:
    left, top, right, bottom = changed(Box(20, 30, 60, 70, "car")) or (0, 0, 0, 0)
    assert (left, right, bottom) == (20, 60, 70)
    assert top < 30
    assert changed(Box(0, 0, 60, 70, "car")) == (0, 0, 60, 70)


def test_a_cross_has_its_middle_in_the_point() -> None:
    left, top, right, bottom = changed(Point(100, 50)) or (0, 0, 0, 0)
    assert ((left + right - 1) / 2, (top + bottom - 1) / 2) == (100, 50)


def test_actions_and_findings() -> None:
    swipe = Action("mobile.swipe", "", point=Point(20, 20), end=Point(180, 80))
    left, top, right, bottom = changed(swipe) or (0, 0, 0, 0)
    assert left < 20 < 180 < right
    assert top < 20 < 80 < bottom
    assert changed(Action("mobile.home", "mobile.home()")) is None
    assert changed(Finding("Is it?", True)) is None
    assert changed(Finding("Is it?", False, "It is not.", (Box(20, 30, 60, 70),)), (Point(5, 5),)) is not None


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (3, 2), (900, 700)])
def test_small_and_large_images(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, "white")
    marks = (Box(0, 0, *size, "it"), Point(size[0] - 1, size[1] - 1))
    assert changed(*marks, image=image) is not None


def test_what_cannot_be_drawn() -> None:
    for result in ("text", 3, {"total": 1}, [True]):
        with pytest.raises(RequestError, match="cannot be drawn"):
            draw(WHITE, result)
    with pytest.raises(ImageError):
        draw("no such file.png", Box(0, 0, 1, 1))
