"""Coordinates of answers become pixels of the user's image, exactly, for images of seven shapes."""

from __future__ import annotations

from decimal import ROUND_FLOOR, ROUND_HALF_UP, Decimal

import pytest
from PIL import Image

from ternvl.tasks import Box, Point, Tasks
from ternvl.tasks.parsing.actions import actions
from ternvl.tasks.parsing.boxes import boxes, point
from tests.tasks.scripted import ScriptedBackend, picture, result_of

PLACES = (*range(0, 1000, 3), 1000)
SHAPES = [(1, 1), (1, 1000), (1000, 1), (3, 7), (448, 448), (641, 479), (3840, 2160)]
Size = tuple[int, int]


def edge(thousandths: int, length: int) -> int:
    """The nearest border between pixels, computed in decimals."""
    return int((Decimal(thousandths) * length / 1000).quantize(Decimal(1), ROUND_HALF_UP))


def pixel(fraction: Decimal, length: int) -> int:
    return min(length - 1, int((fraction * length).quantize(Decimal(1), ROUND_FLOOR)))


@pytest.mark.parametrize("size", SHAPES)
def test_every_coordinate_of_a_box(size: Size) -> None:
    width, height = size
    listed = ", ".join(f"[{x}, {1000 - x}, 1000, 1000]" for x in PLACES)
    found = boxes(f"<ref>it</ref><box>[{listed}]</box>", size)
    for x, box in zip(PLACES, found, strict=True):
        assert box.x1 == min(edge(x, width), width - 1)
        assert box.y1 == min(edge(1000 - x, height), height - 1)
        assert (box.x2, box.y2) == size


@pytest.mark.parametrize("size", SHAPES)
def test_every_second_coordinate_of_a_box(size: Size) -> None:
    listed = ", ".join(f"[0, 0, {x}, {1000 - x}]" for x in PLACES[2:])
    for x, box in zip(PLACES[2:], boxes(f"<box>[{listed}]</box>", size), strict=True):
        assert (box.x1, box.y1) == (0, 0)
        assert box.x2 == max(edge(x, size[0]), 1)
        assert box.y2 == max(edge(1000 - x, size[1]), 1)


@pytest.mark.parametrize("size", SHAPES)
def test_the_whole_image(size: Size) -> None:
    for text in ("[[0, 0, 1000, 1000]]", "[[0.0, 0.0, 1.0, 1.0]]", "[[-5, -20, 1004, 2000]]", "[0, 0, 1000, 1000]"):
        assert boxes(text, size, "it") == (Box(0, 0, *size, "it"),)


@pytest.mark.parametrize("size", SHAPES)
def test_a_box_without_an_area_has_one_pixel(size: Size) -> None:
    for place in range(0, 1001, 13):
        (box,) = boxes(f"[[{place}, {place}, {place}, {place}]]", size)
        if place < 1:
            assert box.xyxy == (0, 0, 1, 1)
        assert box.area == 1
        assert box.x1 == min(size[0] - 1, place * size[0] // 1000)
        assert box.y1 == min(size[1] - 1, place * size[1] // 1000)


@pytest.mark.parametrize("size", SHAPES)
def test_every_thousandth_of_a_click(size: Size) -> None:
    for number in PLACES:
        x, y = Decimal(number) / 1000, Decimal(1000 - number) / 1000
        (action,) = actions(f"pyautogui.click(x={x}, y={y})", size)
        assert action.point == Point(pixel(x, size[0]), pixel(y, size[1]))


def test_a_fraction_that_a_float_only_comes_close_to() -> None:
    assert 0.29 * 100 < 29
    assert result_of("click", "pyautogui.click(x=0.29, y=0.57)", size=(100, 100)).point == Point(29, 57)


def test_clicks_in_pixels_and_beyond_the_image() -> None:
    for text, place in (
        ("pyautogui.click(x=320, y=240)", (320, 240)),
        ("pyautogui.click(x=639.9, y=2)", (639, 2)),
        ("pyautogui.click(x=640, y=480)", (639, 479)),
        ("pyautogui.click(x=5000, y=0)", (639, 0)),
        ("pyautogui.click(x=-0.1, y=1)", (0, 479)),
        ("pyautogui.click(x=1, y=1.0)", (639, 479)),
        ("pyautogui.click(x=0, y=0)", (0, 0)),
        ("pyautogui.click(x=1e-05, y=5e-1)", (0, 240)),
    ):
        assert result_of("click", text, size=(640, 480)).point == Point(*place), text


@pytest.mark.parametrize("size", SHAPES)
def test_a_point_is_the_pixel_in_the_middle(size: Size) -> None:
    for a, b in ((0, 1000), (100, 301), (998, 1000), (0, 3), (333, 334)):
        found = point(f"<box>[[{a}, {a}, {b}, {b}]]</box>", size)
        middle = Decimal(a + b) / 2000
        assert found == Point(pixel(middle, size[0]), pixel(middle, size[1]))
    assert point("[500, 250]", size) == Point(size[0] // 2, size[1] // 4)
    assert point("<point>[[0.5, 0.25]]</point>", size) == Point(size[0] // 2, size[1] // 4)


def test_the_middle_of_a_box() -> None:
    assert Box(0, 0, 1, 1).center == Point(0, 0)
    assert Box(10, 20, 14, 31).center == Point(12, 25)


def test_pixels_are_those_of_the_upright_image() -> None:
    image = picture(40, 20)
    image.getexif()[0x0112] = 6  # to be turned by 90 degrees: 20 x 40
    assert Tasks(ScriptedBackend("[[0, 0, 1000, 500]]")).ground(image, "the top") == (Box(0, 0, 20, 20, "the top"),)


def test_a_crop_of_a_box_has_what_was_drawn() -> None:
    image = Image.new("RGB", (200, 100), "white")
    image.paste("red", (50, 20, 150, 60))
    (box,) = Tasks(ScriptedBackend("<box>[[250, 200, 750, 600]]</box>")).ground(image, "the red one")
    assert image.crop(box.xyxy).getcolors() == [(100 * 40, (255, 0, 0))]
