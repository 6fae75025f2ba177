"""A server that wants a key, is full, stops or is gone: said in words where it happened, and nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.server.fakes import scripted_llm, tiny_llm
from tests.web.drawn import as_file, picture
from tests.web.live import live
from tests.web.playground import Playground, stream

KEY = "key-of-the-test-ü"

Opened = Callable[..., Playground]


def problem(page: Playground) -> str:
    found = page.last.locator(".problem")
    found.wait_for()
    return str(found.inner_text())


def test_a_key_is_asked_for_and_sent_in_a_header_alone(opened: Opened) -> None:
    with live(scripted_llm("ok"), api_key=KEY) as server:
        page = opened(server.url)
        form = page.tab.get_by_role("region", name="The server asks for a key")
        form.get_by_label("API key").fill("wrong")
        form.get_by_role("button", name="Use this key").click()
        form.get_by_text("The API key is wrong.").wait_for()
        form.get_by_label("API key").fill(KEY)
        form.get_by_role("button", name="Use this key").click()
        form.wait_for(state="detached")
        assert page.tab.get_by_label("Model", exact=True).input_value() == "tiny"
        page.ask("Hello")
        assert page.said() == "ok"
        sent = [each for each in page.requests if each.url.endswith("/chat/completions")][-1]
        assert sent.headers["authorization"].encode("latin-1").decode() == f"Bearer {KEY}"
        assert all("key-of-the-test" not in each.url for each in page.requests)
        stored = page.tab.evaluate("JSON.stringify([localStorage, document.cookie, location.href])")
        assert "key-of-the-test" not in stored
        assert page.tab.evaluate("sessionStorage.getItem('ternvl.key')") == KEY
        page.tab.reload()
        page.ask("Again")
        assert page.said() == "ok"


def test_a_key_that_is_missing_for_an_answer_is_asked_for_there(opened: Opened) -> None:
    with live(scripted_llm("ok"), api_key=KEY) as server:
        page = opened(server.url)
        page.message.fill("Hello")
        page.message.press("Enter")
        form = page.last.get_by_role("region", name="The server asks for a key")
        form.get_by_label("API key").fill(KEY)
        form.get_by_role("button", name="Use this key").click()
        page.log.get_by_text("ok", exact=True).wait_for()
        page.settings().get_by_role("button", name="Forget the key").click()
        page.tab.get_by_role("region", name="The server asks for a key").first.wait_for()
        assert page.tab.evaluate("sessionStorage.length") == 0


def test_the_code_takes_the_key_from_a_variable(opened: Opened) -> None:
    with live(scripted_llm("ok"), api_key=KEY) as server:
        page = opened(server.url)
        page.tab.evaluate(f"sessionStorage.setItem('ternvl.key', '{KEY}')")
        page.tab.reload()
        page.button("Code").click()
        for language, expected in (("curl", "$TERNVL_API_KEY"), ("Python", 'os.environ["TERNVL_API_KEY"]')):
            page.tab.get_by_role("tab", name=language).click()
            code = page.tab.get_by_role("dialog").locator("pre").inner_text()
            assert expected in code
            assert "key-of-the-test" not in code


@contextmanager
def held(url: str) -> Iterator[None]:
    """A request of somebody else, whose answer does not end."""
    body = {"messages": [{"role": "user", "content": "Talk"}], "stream": True}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as answer:
        lines = answer.iter_lines()  # the request ends with this generator
        next(lines)
        yield


def test_a_full_server_is_told_with_its_wait_and_asked_again(opened: Opened) -> None:
    llm = scripted_llm("ok ", endless=True)
    with live(llm, max_concurrent_requests=1) as server:
        page = opened(server.url)
        page.attach(as_file(picture()))
        with held(server.url):
            page.ask("What is it?")
            text = problem(page)
            assert "The server is full." in text
            assert "which is its limit" in text
            assert "The server asks to wait for" in text
        assert page.log.get_by_role("article", name="You").get_by_text("What is it?").is_visible()
        assert page.log.locator(".user img").is_visible()
        llm.engine.endless = False  # type: ignore[union-attr]
        page.button("Try again").click()
        page.tab.get_by_text("2/2").wait_for()
        page.log.locator(".markdown").wait_for()
        content = page.body()["messages"][0]["content"]
        assert [part["type"] for part in content] == ["image_url", "text"]


def test_a_server_that_is_stopping_is_told(opened: Opened) -> None:
    with live(scripted_llm("ok")) as server:
        page = opened(server.url)
        server.gate.draining = True
        page.ask("Hello")
        assert "The server is stopping. The server is stopping and takes no new requests." in problem(page)
        assert "wait for" in problem(page)
        server.gate.draining = False
        page.button("Try again").click()
        page.log.get_by_text("ok", exact=True).wait_for()


def test_a_server_that_is_gone_is_told_and_found_again(opened: Opened) -> None:
    with live(scripted_llm("ok")) as server:
        page = opened(server.url)
        page.ask("Hello")
        port = server.port
    page.ask("Are you there?")
    assert "The server cannot be reached." in problem(page)
    page.message.fill("What I write meanwhile")
    with live(scripted_llm("back"), port=port):
        page.button("Try again").click()
        page.log.get_by_text("back", exact=True).wait_for()
        assert page.message.input_value() == "What I write meanwhile"


def test_a_page_that_is_opened_before_its_models_are_there_says_so(page: Playground) -> None:
    page.tab.route("**/v1/models", lambda route: route.abort())
    page.tab.reload()
    page.tab.get_by_role("region", name="The server cannot be reached").wait_for()
    page.tab.unroute("**/v1/models")
    page.button("Try again").click()
    page.tab.get_by_role("region", name="The server cannot be reached").wait_for(state="detached")
    assert page.tab.get_by_label("Model", exact=True).input_value() == "ternvl-nano"


def test_an_engine_that_fails_within_an_answer_leaves_what_it_wrote(opened: Opened) -> None:
    with live(scripted_llm("one two three four five six seven", fail_after=6)) as server:
        page = opened(server.url)
        page.ask("Count")
        assert "The answer broke off." in problem(page)
        assert "err_" in problem(page)
        assert "secret detail" not in problem(page)
        assert page.said().startswith("one")


@pytest.mark.parametrize("end", ["", 'data: {"choices": [{"index": 0, "del'])
def test_a_connection_that_breaks_within_an_answer_leaves_what_it_wrote(page: Playground, end: str) -> None:
    page.respond(stream([{"choices": [{"index": 0, "delta": {"content": "Half an"}}]}]) + end)
    page.ask("Say")
    assert "The connection ended before the answer did." in problem(page)
    assert page.said() == "Half an"
    page.honest()
    page.ask("Hello")
    assert [each["role"] for each in page.body()["messages"]] == ["user", "assistant", "user"]


@pytest.mark.parametrize(
    ("status", "body", "title", "said"),
    [
        (400, {"error": {"message": "temperature is odd."}}, "The server refused the request.", "temperature is odd."),
        (413, {"error": {"message": "Too large."}}, "The server refused the request.", "Too large."),
        (500, {"error": {"message": "err_1"}}, "The server failed.", "err_1"),
        (504, {"error": {"message": "Took too long."}}, "The server failed.", "Took too long."),
        (502, "<html>Bad Gateway</html>", "The server cannot be reached.", "The answer has the status 502"),
        (404, {"detail": "no"}, "The server refused the request.", "The answer has the status 404"),
        (200, "not a stream", "The answer broke off.", "The connection ended"),
        (200, "data: nonsense\n\n", "The answer broke off.", "The connection ended"),
    ],
)
def test_every_failure_is_told_in_words(page: Playground, status: int, body: Any, title: str, said: str) -> None:
    page.respond(body if isinstance(body, str) else json.dumps(body), status=status)
    page.ask("Hello")
    assert title in problem(page)
    assert said in problem(page)
    page.honest()
    page.button("Try again").click()
    page.tab.get_by_text("2/2").wait_for()
    page.answered()
    assert page.said()


def test_a_conversation_that_has_grown_too_long_is_told(opened: Opened) -> None:
    with live(tiny_llm(max_model_len=64)) as server:
        page = opened(server.url)
        page.ask("word " * 100)
        assert "maximum context length is 64 tokens" in problem(page)


def test_below_the_prefix_of_a_proxy_everything_is_found(opened: Opened) -> None:
    with live(scripted_llm("ok"), prefix="/models/vision") as server:
        page = opened(f"{server.url}/models/vision")
        page.ask("Hello")
        assert page.said() == "ok"
        assert page.tab.get_by_label("Model", exact=True).input_value() == "tiny"
        assert {each.url.removeprefix(server.url).split("/")[1] for each in page.requests} == {"models"}
        page.button("Code").click()
        code = page.tab.get_by_role("dialog").locator("pre").inner_text()
        assert f"{server.url}/models/vision/v1/chat/completions" in code
