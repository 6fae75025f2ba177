"""What an answer points at, drawn on the picture and linked with its words."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.web.drawn import as_file, picture, scene
from tests.web.playground import BOX, Playground


def box_of(element: Any) -> list[float]:
    return [float(element.get_attribute(name)) for name in ("x", "y", "width", "height")]


def test_the_box_of_the_model_is_drawn_where_it_says(page: Playground) -> None:
    page.settings("Log probabilities").get_by_label("Ask for them").check()
    page.attach(as_file(scene()))
    answer = page.ask(BOX.format("red circle"))
    assert answer.locator(".mark").inner_text() == "red circle"
    source = answer.locator(".mark").get_attribute("title")
    x1, y1, x2, y2 = map(int, re.findall(r"\d+", source))
    assert source == f"<ref>red circle</ref><box>[[{x1}, {y1}, {x2}, {y2}]]</box>"
    drawn = answer.locator(".outline rect").last
    assert box_of(drawn) == [x1, y1, x2 - x1, y2 - y1]
    whole, box = answer.locator(".grounding img").bounding_box(), drawn.bounding_box()
    assert box["x"] == pytest.approx(whole["x"] + whole["width"] * x1 / 1000, abs=4)
    assert box["y"] == pytest.approx(whole["y"] + whole["height"] * y1 / 1000, abs=4)
    assert box["width"] == pytest.approx(whole["width"] * (x2 - x1) / 1000, abs=8)
    # The circle is at 112 to 460 and 161 to 509 thousandths; the small model sees about where.
    assert abs(x1 - 112) + abs(y1 - 161) + abs(x2 - 460) + abs(y2 - 509) < 400


def test_words_and_boxes_are_linked_both_ways(page: Playground) -> None:
    page.attach(as_file(scene()))
    page.feign(
        "<ref>circle</ref><box>[[112, 161, 460, 509]]</box> and <ref>square</ref><box>[[558, 576, 875, 893]]</box>"
    )
    answer = page.ask("Where?")
    words, outlines = answer.locator(".mark"), answer.locator(".outline")

    def pointed() -> list[list[bool]]:
        return [
            ["is-pointed" in (each.get_attribute("class") or "") for each in found.all()] for found in (words, outlines)
        ]

    assert pointed() == [[False, False], [False, False]]
    words.nth(1).hover()
    assert pointed() == [[False, True], [False, True]]
    outlines.nth(0).locator("rect").last.hover()
    assert pointed() == [[True, False], [True, False]]
    page.message.hover()
    assert pointed() == [[False, False], [False, False]]
    words.nth(0).focus()
    assert pointed() == [[True, False], [True, False]]


def test_quadrilaterals_and_points_are_drawn(page: Playground) -> None:
    page.attach(as_file(scene()))
    page.feign("<ref>STOP</ref><quad>[[100, 100, 500, 150, 480, 300, 90, 250]]</quad>, <point>[[250, 750]]</point>")
    answer = page.ask("Where?")
    assert answer.locator("polygon").last.get_attribute("points") == "100,100 500,150 480,300 90,250"
    whole, dot = answer.locator(".grounding img").bounding_box(), answer.locator(".tag-dot").bounding_box()
    assert dot["x"] + dot["width"] / 2 == pytest.approx(whole["x"] + whole["width"] / 4, abs=1)
    assert dot["y"] + dot["height"] / 2 == pytest.approx(whole["y"] + whole["height"] * 3 / 4, abs=1)
    assert answer.locator(".mark").all_inner_texts() == ["STOP", "[[250, 750]]"]


def test_actions_are_drawn_as_a_cursor_and_never_run(page: Playground) -> None:
    page.attach(as_file(scene()))
    page.tab.evaluate("() => { window.pyautogui = {click: () => { window.ran = true; }}; }")
    page.feign(
        "Click it:\n\n```python\npyautogui.click(x=0.25, y=0.5)\n```\n"
        "mobile.swipe(from_coord=[0.5, 0.9], to_coord=[0.5, 0.1])\n\n"
        "pyautogui.write(message='hi')\n\npyautogui.click(window.ran = 1, 2)"
    )
    answer = page.ask("Press the button")
    whole, cursor = answer.locator(".grounding img").bounding_box(), answer.locator(".tag-cursor").nth(0).bounding_box()
    assert cursor["x"] == pytest.approx(whole["x"] + whole["width"] / 4, abs=3)
    assert cursor["y"] == pytest.approx(whole["y"] + whole["height"] / 2, abs=3)
    assert answer.locator("polyline").get_attribute("points") == "500,900 500,100"
    assert answer.locator(".mark").all_inner_texts() == [
        "pyautogui.click(x=0.25, y=0.5)",
        "mobile.swipe(from_coord=[0.5, 0.9], to_coord=[0.5, 0.1])",
    ]
    assert answer.locator("code.action").inner_text() == "pyautogui.write(message='hi')"
    assert "pyautogui.click(window.ran = 1, 2)" in page.said()
    assert page.tab.evaluate("window.ran") is None


def test_marks_are_drawn_on_the_picture_that_is_chosen(page: Playground) -> None:
    page.attach(as_file(picture(200, 100), "wide.png"), as_file(picture(100, 200), "tall.png"))
    page.feign("<box>[[0, 0, 500, 500]]</box>")
    answer = page.ask("Where?")
    assert answer.locator(".grounding img").get_attribute("alt") == "wide.png, with 1 marked"
    page.button("Image 2", answer).click()
    assert answer.locator(".grounding img").get_attribute("alt") == "tall.png, with 1 marked"
    assert answer.locator(".outline rect").count() == 2


def test_without_a_picture_nothing_is_drawn(page: Playground) -> None:
    page.feign("The matrix [[1, 2, 3, 4]] and <box>[[1, 2, 3, 4]]</box>")
    answer = page.ask("Say")
    assert page.said().split() == ["The", "matrix", "[[1,", "2,", "3,", "4]]", "and", "[[1,", "2,", "3,", "4]]"]
    assert answer.locator(".grounding").count() == 0


def test_a_picture_that_the_page_does_not_load_has_its_marks_on_an_empty_square(page: Playground) -> None:
    page.button("Add a picture by its address").click()
    page.tab.get_by_role("textbox", name="Address").fill("https://pictures.example/a.png")
    page.button("Add it").click()
    page.feign("<box>[[250, 250, 750, 750]]</box>")
    answer = page.ask("Where?")
    area = answer.locator(".grounding-picture").bounding_box()
    assert area["width"] == pytest.approx(area["height"], abs=1)
    assert box_of(answer.locator(".outline rect").last) == [250, 250, 500, 500]
