"""Conversations stay in the browser, and leave it as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.web.drawn import as_file, scene
from tests.web.playground import Playground


def titles(page: Playground) -> list[str]:
    found: list[str] = page.tab.locator(".head-title").all_inner_texts()
    return found


def export(page: Playground, title: str = "") -> dict[str, Any]:
    """What the file of a conversation has, or that of all."""
    if title:
        page.tab.locator(".head", has_text=title).hover()
    with page.tab.expect_download() as download:
        page.button(f"Export {title or 'all'}").click()
    found: dict[str, Any] = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    return found


def take(page: Playground, file: object) -> None:
    """Import a file."""
    content = file if isinstance(file, bytes) else json.dumps(file).encode()
    page.tab.get_by_label("A file of conversations").set_input_files(
        [{"name": "conversations.json", "mimeType": "application/json", "buffer": content}]
    )


def conversation(page: Playground) -> None:
    """A conversation with everything: a picture, a box, log probabilities, a second version."""
    page.settings("Log probabilities").get_by_label("Ask for them").check()
    page.attach(as_file(scene(), "scene.png"))
    page.ask("What is in this image?")
    page.button("Answer again", page.last).click()
    page.tab.get_by_text("2/2").wait_for()
    page.answered()


def test_a_conversation_is_there_after_the_page_is_loaded_again(page: Playground) -> None:
    conversation(page)
    stats = page.last.locator(".stats").inner_text()
    page.tab.wait_for_timeout(500)
    page.tab.reload()
    page.tab.locator(".head-title").click()
    page.last.wait_for()
    assert page.said() == "A red circle and a blue square."
    assert page.last.locator(".stats").inner_text() == stats
    image = page.log.locator(".user img")
    image.wait_for()
    assert image.evaluate("async (image) => { await image.decode(); return image.naturalWidth; }") == 448
    page.button("Version before").click()
    page.ask("Hello")
    assert len(page.body()["messages"]) == 3


def test_an_answer_that_the_page_was_closed_on_is_kept_as_stopped(page: Playground) -> None:
    page.tab.route("**/v1/chat/completions", lambda route: None)
    page.send("Hello")
    page.button("Stop").wait_for()
    page.tab.wait_for_timeout(800)
    page.tab.reload()
    page.tab.locator(".head-title").click()
    page.last.get_by_text("Stopped.").wait_for()
    page.button("Send").wait_for()


def test_what_is_exported_can_be_imported_and_is_the_same(page: Playground) -> None:
    conversation(page)
    page.feign(
        {"tool_calls": [{"index": 0, "id": "call_1", "function": {"name": "f", "arguments": "{}"}}]},
        finish="tool_calls",
    )
    page.ask("Call")
    page.feign("Done")
    page.tab.get_by_label("Result of f").fill("7")
    page.button("Send the result").click()
    page.answered()
    first = export(page)
    assert first["format"] == "ternvl-playground"
    page.tab.locator(".head").hover()
    page.button("Delete What is in this image?").click()
    page.button("Delete").click()
    page.tab.locator(".head").wait_for(state="detached")
    take(page, first)
    page.tab.locator(".head").wait_for()
    assert page.log.get_by_role("article").count() == 6
    second = export(page)

    def lasting(file: dict[str, Any]) -> object:
        """A file with its ids numbered in order of their turns."""
        text = json.dumps(file)
        for number, turn in enumerate(file["conversations"][0]["turns"]):
            text = text.replace(turn["id"], f"turn {number}")
        return json.loads(text)

    assert lasting(second) == lasting(first)


def test_one_conversation_is_exported_alone(page: Playground) -> None:
    page.ask("Hello")
    page.tab.keyboard.press("Alt+n")
    page.ask("What is the capital of France?")
    assert [each["title"] for each in export(page, "Hello")["conversations"]] == ["Hello"]
    assert len(export(page)["conversations"]) == 2


def test_deleting_asks_first_and_lasts(page: Playground) -> None:
    page.ask("Hello")
    page.tab.locator(".head").hover()
    page.button("Delete Hello").click()
    page.button("Keep").click()
    assert titles(page) == ["Hello"]
    page.button("Delete Hello").click()
    page.button("Delete").click()
    page.tab.get_by_text("Show it a picture.").wait_for()
    page.tab.reload()
    page.tab.get_by_text("Show it a picture.").wait_for()
    assert titles(page) == []


GOOD: dict[str, Any] = {
    "format": "ternvl-playground",
    "version": 1,
    "conversations": [
        {
            "title": "t",
            "updated": 1,
            "chosen": {},
            "settings": {"model": "", "system": "", "toolChoice": "auto", "schema": "", "topLogprobs": 5, "tools": []},
            "turns": [{"id": "a", "parent": None, "role": "user", "text": "x", "pictures": []}],
        }
    ],
}


def changed(**change: Any) -> dict[str, Any]:
    """A file whose one turn is another one."""
    file: dict[str, Any] = json.loads(json.dumps(GOOD))
    file["conversations"][0]["turns"][0].update(change)
    return file


def test_a_file_with_the_least_that_it_needs_is_taken(page: Playground) -> None:
    take(page, GOOD)
    page.tab.locator(".head").wait_for()
    assert titles(page) == ["t"]


@pytest.mark.parametrize(
    ("file", "wrong"),
    [
        (b"{", "The file is not JSON."),
        ([], "in place of an object"),
        ({**GOOD, "format": "other"}, "has no conversations of this page"),
        ({**GOOD, "version": 2}, "another version"),
        ({**GOOD, "conversations": {}}, "in place of a list"),
        (changed(text=None), "in place of a text"),
        (changed(parent="nobody"), "names a turn that it does not have"),
        (changed(pictures=[{"name": "x", "url": "javascript:alert(1)"}]), "no image in base64"),
        (
            changed(pictures=[{"name": "x", "url": "data:image/svg+xml;base64,PHN2Zz4="}]),
            "no picture that the server reads",
        ),
        (changed(role="assistant"), "in place of a text"),
    ],
    ids=range(10),
)
def test_a_damaged_file_is_refused_in_words_and_changes_nothing(page: Playground, file: object, wrong: str) -> None:
    take(page, file)
    page.tab.get_by_role("alert").get_by_text(wrong).wait_for()
    assert titles(page) == []


def test_a_full_disk_is_told_and_the_conversation_goes_on(page: Playground) -> None:
    devtools = page.context.new_cdp_session(page.tab)
    devtools.send("Storage.overrideQuotaForOrigin", {"origin": page.url, "quotaSize": 20_000})
    page.attach(as_file(scene() + b"\0" * 200_000))
    page.ask("What is in this image?")
    page.tab.get_by_role("alert").get_by_text("Export or delete some of them.").wait_for()
    assert page.said() == "A red circle and a blue square."
    page.ask("What is in this image?")
    assert page.said() == "A red circle and a blue square."
    devtools.send("Storage.overrideQuotaForOrigin", {"origin": page.url})
    page.ask("Hello")
    page.tab.locator(".head").wait_for()
    assert page.tab.get_by_role("alert").count() == 0


def test_the_key_and_nothing_else_is_left_out_of_what_is_kept(page: Playground) -> None:
    page.tab.evaluate("sessionStorage.setItem('ternvl.key', 'secret-of-the-test')")
    page.tab.reload()
    page.ask("Hello")
    assert "secret-of-the-test" not in json.dumps(export(page))
    assert "secret-of-the-test" not in page.tab.evaluate("JSON.stringify(localStorage)")
