"""Everyone can use the page: axe finds nothing, in light and dark, wide and narrow; the keyboard reaches everything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import npm
from tests.web.drawn import as_file, scene
from tests.web.playground import BOX, Playground

WEB = Path(__file__).resolve().parents[2] / "web"
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True},
}
_RULES = {
    "resultTypes": ["violations"],
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
}


@pytest.fixture(scope="module")
def axe() -> str:
    npm.install(WEB)
    return (WEB / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


@pytest.fixture(params=LOOKS)
def look(request: pytest.FixtureRequest, opened: Callable[..., Playground], address: str) -> Playground:
    return opened(address, **LOOKS[request.param], bypass_csp=True, reduced_motion="reduce")


def violations(page: Playground, axe: str) -> list[str]:
    if not page.tab.evaluate("typeof window.axe === 'object'"):
        page.tab.evaluate(axe)
    found = page.tab.evaluate("(rules) => axe.run(document, rules)", _RULES)["violations"]
    return [f"{each['id']}: {node['html'][:160]}" for each in found for node in each["nodes"]]


def test_axe_finds_nothing_anywhere(look: Playground, axe: str) -> None:
    page = look
    found: list[str] = []

    def see(state: str) -> None:
        found.extend(f"{state}: {each}" for each in violations(page, axe))

    see("welcome")
    page.settings("Log probabilities").get_by_label("Ask for them").check()
    for section in ("Pictures", "Tools", "Form of answers"):
        page.settings(section)
    page.settings("Sampling").get_by_label("Temperature").fill("9")
    see("settings")
    page.settings("Sampling").get_by_label("Temperature").fill("")
    page.tab.get_by_role("button", name="Add a tool").click()
    see("tool")
    page.tab.keyboard.press("Escape")
    page.button("Close the settings").click()
    page.attach(as_file(scene()))
    see("picture attached")
    page.ask(BOX.format("red circle"))
    page.last.locator(".mark").hover()
    see("box")
    page.button("Tokens", page.last).click()
    page.last.get_by_role("option").nth(1).hover()
    see("tokens")
    page.log.locator(".thumbnail").click()
    see("tiles")
    page.tab.keyboard.press("Escape")
    call = {"index": 0, "id": "1", "function": {"name": "get_weather", "arguments": '{"city": "Porto"}'}}
    page.feign({"reasoning_content": "Hm."}, {"tool_calls": [call]}, finish="tool_calls")
    page.ask("Call it")
    see("call")
    page.feign(
        "# Title\n\n1. [a](https://a.example)\n\n> b\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n"
        '```json\n{"a": [1, true]}\n```'
    )
    page.last.locator("textarea").fill("7")
    page.button("Send the result").click()
    page.answered()
    see("markdown")
    page.respond("{}", status=401)
    page.ask("Fail")
    see("key")
    page.respond("{}", status=429, headers={"Retry-After": "30"})
    page.ask("Fail")
    see("full")
    page.button("Answer again", page.last).click()
    page.tab.get_by_text("2/2").wait_for()
    page.tab.get_by_text("Fail").last.hover()
    page.button("Edit and ask again").last.click()
    see("editing")
    for name in ("Code", "Take a picture", "Add a picture by its address"):
        page.button(name).click()
        see(name)
        page.tab.keyboard.press("Escape")
    if page.tab.viewport_size["width"] < 900:
        page.button("Conversations").click()
        see("list")
    page.button("Keys").click()
    see("keys")
    assert found == [], "\n".join(found)


def test_the_colours_can_be_chosen_and_last(page: Playground) -> None:
    def ground() -> str:
        return str(page.tab.evaluate("getComputedStyle(document.body).backgroundColor"))

    page.tab.emulate_media(color_scheme="dark")
    dark = ground()
    page.button("Light").click()
    light = ground()
    assert light != dark
    page.tab.reload()
    page.message.wait_for()
    assert ground() == light
    page.button("Dark").click()
    assert ground() == dark
    page.tab.emulate_media(color_scheme="light")
    assert ground() == dark
    page.button("Colours of the system").click()
    assert ground() == light


def test_on_a_phone_nothing_is_wider_than_the_screen(opened: Callable[..., Playground], address: str) -> None:
    page = opened(address, **LOOKS["phone"])
    page.attach(as_file(scene(), "a-very-long-name-of-a-file-" * 6 + ".png"))
    page.feign(
        "A" * 300 + "\n\n```\n" + "B" * 300 + "\n```\n\n| " + "C | " * 40 + "\n|" + "---|" * 40 + "\n| " + "d | " * 40
    )
    page.ask("W" * 300)
    assert page.tab.evaluate("document.documentElement.scrollWidth") == 390
    page.button("Conversations").click()
    assert page.tab.evaluate("document.documentElement.scrollWidth") == 390
    page.button("New conversation").click()
    page.tab.get_by_text("Show it a picture.").wait_for()
    assert page.tab.get_by_role("navigation").count() == 0


def test_an_answer_is_said_once_when_it_has_ended(page: Playground) -> None:
    page.ask("What is the capital of France?")
    page.tab.get_by_role("status").and_(page.tab.get_by_text("Answer: Paris.", exact=True)).wait_for()


def test_the_tab_key_goes_through_the_page_and_comes_back_from_dialogs(page: Playground) -> None:
    seen = set()
    page.message.focus()
    for _ in range(30):
        page.tab.keyboard.press("Tab")
        seen.add(
            page.tab.evaluate("document.activeElement.getAttribute('aria-label') ?? document.activeElement.innerText")
        )
    assert {
        "Add pictures",
        "Take a picture",
        "Add a picture by its address",
        "Conversations",
        "Settings",
        "Code",
    } <= seen
    assert {"New conversation", "Import", "Keys", "Model"} <= seen
    page.button("Add a picture by its address").focus()
    page.tab.keyboard.press("Enter")
    page.tab.get_by_role("dialog").wait_for()
    page.tab.keyboard.press("Escape")
    page.tab.locator("dialog").wait_for(state="detached")
    assert page.tab.evaluate("document.activeElement.getAttribute('aria-label')") == "Add a picture by its address"
