"""Asking, and what follows: streams, stopping, asking again, editing, branching."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from ternvl.llm import LLM
from ternvl.params import SamplingParams
from tests.server.fakes import scripted_llm
from tests.waiting import eventually
from tests.web.live import live
from tests.web.playground import Playground

CAPITALS = "Name the european capitals"


@pytest.fixture(scope="module")
def capitals(embedded: LLM) -> str:
    return embedded.chat([{"role": "user", "content": CAPITALS}], SamplingParams(temperature=0))[0].text


def test_an_answer_grows_as_it_is_written_and_is_the_models(page: Playground, capitals: str) -> None:
    page.tab.evaluate(
        """() => {
            window.seen = new Set();
            const look = () => window.seen.add(document.querySelector(".markdown")?.innerText ?? "");
            new MutationObserver(look).observe(document.body, {subtree: true, childList: true, characterData: true});
        }"""
    )
    page.ask(CAPITALS)
    assert page.said() == capitals
    # A busy machine may draw the answer once, when it is whole; a test below holds an answer in the middle.
    partial = [text for text in page.tab.evaluate("[...window.seen]") if text and text != capitals]
    assert all(capitals.startswith(text.rstrip()) for text in partial)


def test_the_first_message_names_the_conversation(page: Playground) -> None:
    page.ask("What is the capital of France?")
    assert page.said() == "Paris."
    entry = page.tab.get_by_role("navigation").get_by_role("button", name="What is the capital of France?", exact=True)
    assert entry.get_attribute("aria-current") == "true"


def test_an_answer_tells_its_tokens_and_times(page: Playground) -> None:
    page.ask(CAPITALS)
    stats = page.last.locator(".stats").inner_text()
    assert re.search(r"^144 tokens\n(\d+ tokens/s\n)?first after [\d.]+ m?s\nprompt 23", stats), stats
    page.button("Answer again", page.last).click()
    page.tab.get_by_text("2/2").wait_for()
    assert "16 cached" in page.answered().locator(".stats").inner_text()


def test_a_second_question_is_asked_with_what_came_before(page: Playground) -> None:
    page.ask("Hello")
    first = page.said()
    page.ask("What is the capital of France?")
    assert page.body()["messages"] == [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "What is the capital of France?"},
    ]
    assert page.body()["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("how", ["the button", "the key"])
def test_stopping_keeps_what_was_written_and_ends_the_work(opened: Callable[..., Playground], how: str) -> None:
    llm = scripted_llm("on and on ", endless=True)
    with live(llm) as server:
        page = opened(server.url)
        page.send("Talk")
        page.last.get_by_text("on and on").wait_for()
        if how == "the key":
            page.tab.keyboard.press("Escape")
        else:
            page.button("Stop").click()
        page.last.get_by_text("Stopped.").wait_for()
        assert page.said().startswith("on and on")
        eventually(lambda: len(llm.engine.aborted) == 1)  # type: ignore[union-attr]
        assert not llm.engine.has_work


def test_asking_again_keeps_both_answers(page: Playground) -> None:
    page.feign("One")
    page.ask("Say")
    page.feign("Two")
    page.button("Answer again", page.last).click()
    page.tab.get_by_text("2/2").wait_for()
    assert page.answered().locator(".markdown").inner_text() == "Two"
    page.button("Version before").click()
    assert page.said() == "One"
    page.button("Version after").click()
    assert page.said() == "Two"


def test_an_edited_message_is_another_version_with_answers_of_its_own(page: Playground) -> None:
    page.ask("What is the capital of France?")
    page.ask("Hello")
    page.tab.get_by_text("What is the capital of France?", exact=True).last.hover()
    page.button("Edit and ask again").first.click()
    editor = page.tab.get_by_label("Your message, changed")
    assert editor.input_value() == "What is the capital of France?"
    editor.fill("What is the capital of Portugal?")
    page.button("Ask again").click()
    page.log.get_by_text("Lisbon.").wait_for()
    assert page.tab.get_by_role("article").count() == 2
    page.button("Version before").click()
    assert page.tab.get_by_role("article").count() == 4
    page.log.get_by_text("Paris.").wait_for()


def test_a_branch_is_a_conversation_of_its_own(page: Playground) -> None:
    page.ask("What is the capital of France?")
    page.ask("Hello")
    page.button("Continue in a new conversation").first.click()
    page.tab.locator(".head").nth(1).wait_for()
    assert page.tab.get_by_role("article").count() == 2
    page.ask("What is the capital of Portugal?")
    assert page.said() == "Lisbon."
    page.tab.locator(".head-title").nth(1).click()
    page.log.get_by_text("Hello", exact=True).wait_for()
    assert page.log.get_by_text("Lisbon.").count() == 0


def test_an_answer_is_written_on_while_another_conversation_is_shown(opened: Callable[..., Playground]) -> None:
    with live(scripted_llm("on and on ", endless=True)) as server:
        page = opened(server.url)
        page.send("Talk")
        page.last.get_by_text("on and on").wait_for()
        before = len(page.said())
        page.button("New conversation").click()
        page.tab.get_by_text("Show it a picture.").wait_for()
        page.tab.locator(".head", has_text="Talk").locator(".running").wait_for()
        page.tab.locator(".head-title", has_text="Talk").click()
        page.tab.wait_for_function(f"document.querySelector('.markdown').innerText.length > {before}")
        page.button("Stop").click()
        page.tab.locator(".running").wait_for(state="detached")


def test_everything_can_be_done_with_the_keyboard(page: Playground) -> None:
    page.message.press_sequentially("Hel")
    page.tab.keyboard.press("Shift+Enter")
    page.message.press_sequentially("lo")
    assert page.message.input_value() == "Hel\nlo"
    page.tab.keyboard.press("Enter")
    page.answered()
    assert page.body()["messages"][0]["content"] == "Hel\nlo"
    assert page.message.input_value() == ""
    for keys, shown in (("Alt+s", "Settings of answers"), ("Alt+l", "Conversations")):
        element = page.tab.get_by_label(shown, exact=True).and_(page.tab.locator("aside, nav"))
        before = element.is_visible()
        page.tab.keyboard.press(keys)
        assert element.is_visible() != before
    page.tab.keyboard.press("Alt+c")
    page.tab.get_by_role("dialog").wait_for()
    page.tab.keyboard.press("Escape")
    page.tab.locator("dialog").wait_for(state="detached")
    page.tab.keyboard.press("Alt+n")
    page.tab.get_by_text("Show it a picture.").wait_for()
    page.message.and_(page.tab.locator(":focus")).wait_for()


def test_markdown_is_shown_as_it_is_meant(page: Playground) -> None:
    page.feign("### Title\n\n* **one**\n* `two`\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```python\nprint('x')\n```\n")
    answer = page.ask("Show")
    assert answer.locator("h2").inner_text() == "Title"
    assert answer.locator("li strong").inner_text() == "one"
    assert answer.locator("td").all_inner_texts() == ["1", "2"]
    assert answer.locator("pre .hljs-built_in").inner_text() == "print"
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.button("Copy", answer.locator("pre")).click()
    assert page.tab.evaluate("navigator.clipboard.readText()") == "print('x')"


def test_reasoning_is_folded(page: Playground) -> None:
    page.feign({"reasoning_content": "Because."}, "So.")
    answer = page.ask("Why?")
    assert page.said() == "So."
    assert not answer.get_by_text("Because.").is_visible()
    answer.get_by_text("How it came to this").click()
    answer.get_by_text("Because.").wait_for()
    page.ask("And?")
    assert page.body()["messages"][1] == {"role": "assistant", "content": "So."}
