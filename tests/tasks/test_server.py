"""Tasks over HTTP: what is sent, and what becomes of answers, errors and busy servers."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from ternvl.errors import RequestError, TaskError, TernvlError
from ternvl.tasks import OFFICIAL, PLAIN, AsyncTasks, Tasks
from ternvl.tasks.pictures import Picture
from tests.tasks.scripted import CALLS, SCHEMA, picture
from tests.tasks.scripted_server import ScriptedServer
from tests.tasks.test_malformed import GOOD


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_what_is_sent(server: ScriptedServer) -> None:
    server.say("Yes.")
    with Tasks(server.url, api_key="secret", model="mine", max_tokens=9) as tasks:
        assert tasks.yes_no(picture(), "Is it?", max_tiles=3) is True
    (body,) = server.bodies
    url = body["messages"][0]["content"][0]["image_url"].pop("url")
    assert Picture(picture()).url == url
    assert url.startswith("data:image/png;base64,")
    assert base64.b64decode(url.partition(",")[2]).startswith(b"\x89PNG")
    text = "Is it? Please answer yes or no. Answer the question using a single word or phrase."
    content = [{"type": "image_url", "image_url": {"max_dynamic_patch": 3}}, {"type": "text", "text": text}]
    assert body == {
        "model": "mine", "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 9,
    }  # fmt: skip
    assert server.paths == ["/v1/chat/completions"]
    assert server.headers[0]["Authorization"] == "Bearer secret"


def test_nothing_that_other_servers_do_not_know_is_sent_unasked(server: ScriptedServer) -> None:
    server.say("A car.")
    with Tasks(server.url + "/") as tasks:
        tasks.caption(picture())
    (body,) = server.bodies
    assert body.keys() == {"messages", "temperature", "max_tokens"}
    assert body["messages"][0]["content"][0]["image_url"].keys() == {"url"}
    assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize(
    ("models", "model", "is_plain"),
    [
        ({"data": [{"id": "ternvl-nano"}, {"id": "french", "parent": "ternvl-nano"}]}, None, True),
        ({"data": [{"id": "ternvl-nano"}, {"id": "french", "parent": "ternvl-nano"}]}, "french", True),
        ({"data": [{"id": "ternvl-nano"}]}, "another", False),
        ({"data": [{"id": "InternVL3-1B"}, {"id": "a", "parent": None}]}, "a", False),
        ({"data": [{"id": 5}]}, None, False),
        ({"data": []}, None, False),
        ({"data": [7]}, None, False),
        (b"no json", "ternvl-nano", True),
        (None, "ternvl-nano", True),
        (None, None, False),
    ],
)
def test_prompts_are_those_of_the_model_that_is_served(
    server: ScriptedServer, models: Any, model: str | None, is_plain: bool
) -> None:
    server.models = models
    server.say("Yes.")
    with Tasks(server.url, model=model) as tasks:
        for _ in range(2):
            tasks.yes_no(picture(), "Is it?")

    async def ask() -> None:
        async with AsyncTasks(server.url, model=model) as tasks:
            await tasks.yes_no(picture(), "Is it?")

    asyncio.run(ask())
    assert server.listed == 2  # once a client
    asked = {body["messages"][0]["content"][1]["text"] for body in server.bodies}
    assert asked == {"Is it?" if is_plain else OFFICIAL.yes_no.format(question="Is it?")}
    with Tasks(server.url, prompts=PLAIN) as tasks:
        tasks.yes_no(picture(), "Is it?")
    assert server.listed == 2


def test_a_schema_and_a_system_message_are_sent(server: ScriptedServer) -> None:
    server.say(GOOD["read"])
    with Tasks(server.url) as tasks:
        assert tasks.read(picture(), SCHEMA) == {"total": 12.5}
        server.say("pyautogui.click(x=0.5, y=0.5)")
        tasks.click(picture(), "open the menu")
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
    assert server.bodies[0]["response_format"] == form
    assert [message["role"] for message in server.bodies[1]["messages"]] == ["system", "user"]


@pytest.mark.parametrize("task", CALLS)
def test_every_task_on_a_thread_and_on_an_event_loop(server: ScriptedServer, task: str) -> None:
    server.say(GOOD[task])
    with Tasks(server.url) as tasks:
        expected = CALLS[task](tasks, picture())

    async def ask() -> Any:
        async with AsyncTasks(server.url) as tasks:
            return await CALLS[task](tasks, picture())

    sent = len(server.bodies)
    assert asyncio.run(ask()) == expected
    key = lambda body: json.dumps(body["messages"])  # noqa: E731
    assert sorted(map(key, server.bodies[:sent])) == sorted(map(key, server.bodies[sent:]))


def test_reasoning_is_no_part_of_an_answer(server: ScriptedServer) -> None:
    server.say("<think>\nNo, or maybe\n</think>\nYes.")
    with Tasks(server.url) as tasks:
        assert tasks.yes_no(picture(), "Is it?") is True


def test_an_answer_that_was_cut(server: ScriptedServer) -> None:
    server.say("A car and", finish_reason="length")
    with Tasks(server.url) as tasks, pytest.raises(TaskError, match="max_tokens"):
        tasks.caption(picture())


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again(server: ScriptedServer, status: int) -> None:
    async def ask() -> str:
        async with AsyncTasks(server.url) as tasks:
            return await tasks.caption(picture())

    for call in (lambda: Tasks(server.url).caption(picture()), lambda: asyncio.run(ask())):
        server.say("A car.")
        server.script = [(status, {"Retry-After": "0"}, {}), (status, {"Retry-After": "0.01"}, {}), *server.script]
        assert call() == "A car."


def test_a_server_that_stays_busy(server: ScriptedServer) -> None:
    server.script = [(429, {"Retry-After": "0"}, {"error": {"message": "The queue is full."}})]
    with Tasks(server.url) as tasks, pytest.raises(TaskError, match="429: The queue is full") as raised:
        tasks.caption(picture())
    assert raised.value.status == 429
    assert len(server.bodies) == 4


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (400, {"error": {"message": "No."}}, "status 400: No."),
        (404, {"error": "lost"}, r"status 404\."),
        (500, b"<html>", r"status 500\."),
        (200, b"<html>", "no text"),
        (200, {}, "no text"),
        (200, [], "no text"),
        (200, {"choices": []}, "no text"),
        (200, {"choices": [{}]}, "no text"),
        (200, {"choices": [{"message": {"content": None, "tool_calls": []}}]}, "no text"),
        (200, {"choices": [{"message": {"content": [{"type": "text"}]}}]}, "no text"),
        (200, b"[" * 100_000, "no text"),
        (302, {}, r"status 302\."),
    ],
)
def test_what_is_no_answer(server: ScriptedServer, status: int, body: Any, words: str) -> None:
    server.script = [(status, {}, body)]
    with Tasks(server.url) as tasks, pytest.raises(TaskError, match=words) as raised:
        tasks.caption(picture())
    assert raised.value.status == status


def test_no_server() -> None:
    async def ask() -> None:
        async with AsyncTasks("http://127.0.0.1:9/v1") as tasks:
            await tasks.detect(picture(), ["a", "b"])

    with pytest.raises(TaskError, match="could not be reached"), Tasks("http://127.0.0.1:9/v1") as tasks:
        tasks.detect(picture(), ["a", "b"])
    with pytest.raises(TaskError, match="could not be reached"):
        asyncio.run(ask())


def test_a_schema_that_is_no_json(server: ScriptedServer) -> None:
    with Tasks(server.url) as tasks, pytest.raises(RequestError, match="cannot be written as JSON"):
        tasks.read(picture(), {"const": {1, 2}})


def test_half_a_character_reaches_the_server(server: ScriptedServer) -> None:
    server.script = [(400, {}, {"error": {"message": "No character."}})]
    with Tasks(server.url) as tasks, pytest.raises(TernvlError, match="No character"):
        tasks.yes_no(picture(), "\ud800?")
