"""OpenAI's message objects: which are accepted, and which are refused with the path of the error."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from ternvl.errors import RequestError
from ternvl.prompt.messages import ImageInput, Message, ToolCall, parse_messages

URL = "https://example.com/a.png"
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def image(url: object = URL, **more: object) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def user(*parts: object) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


PICTURE = Image.new("RGB", (1, 1))

ACCEPTED = [
    ({"role": "user", "content": "Hi"}, Message("user", "Hi")),
    ({"role": "system", "content": [text("a"), text("b")]}, Message("system", "a\nb")),
    ({"role": "user", "content": []}, Message("user")),
    (user(text("a"), image(), text("b")), Message("user", "a\nb", (ImageInput(URL),))),
    (user(image(detail="low"), image(detail=None)), Message("user", "", (ImageInput(URL, "low"), ImageInput(URL)))),
    (user({"type": "image", "image": PICTURE}), Message("user", "", (ImageInput(PICTURE),))),
    ({"role": "assistant", "content": "x", "tool_calls": []}, Message("assistant", "x")),
    ({"role": "assistant", "content": None, "tool_calls": [CALL]},
     Message("assistant", tool_calls=(ToolCall("c1", "f", '{"a": 1}'),))),
    ({"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": ""}}]},
     Message("assistant", tool_calls=(ToolCall("c1", "f", "{}"),))),
    ({"role": "assistant", "content": "x", "tool_calls": [CALL]},
     Message("assistant", "x", tool_calls=(ToolCall("c1", "f", '{"a": 1}'),))),
    ({"role": "tool", "content": [text("42")], "tool_call_id": "c1"}, Message("tool", "42")),
    ({"role": "user", "content": "Hi", "name": "Ann"}, Message("user", "Hi")),
]  # fmt: skip

FUNCTION = {"name": "f", "arguments": "{}"}
REFUSED = [
    ("Hi", ""),
    ({"content": "Hi"}, ".role"),
    ({"role": "developer", "content": "Hi"}, ".role"),
    ({"role": ["user"], "content": "Hi"}, ".role"),
    ({"role": "user"}, ".content"),
    ({"role": "user", "content": None}, ".content"),
    ({"role": "user", "content": 7}, ".content"),
    ({"role": "user", "content": {"type": "text", "text": "a"}}, ".content"),
    ({"role": "assistant", "content": None, "tool_calls": []}, ".content"),
    (user("Hi"), ".content[0]"),
    (user({"text": "a"}), ".content[0].type"),
    (user({"type": "video_url"}), ".content[0].type"),
    (user(text("a"), {"type": "text"}), ".content[1].text"),
    (user({"type": "image_url", "image_url": URL}), ".content[0].image_url"),
    (user({"type": "image_url"}), ".content[0].image_url"),
    (user({"type": "image_url", "image_url": {}}), ".content[0].image_url.url"),
    (user(image(7)), ".content[0].image_url.url"),
    (user(image("")), ".content[0].image_url.url"),
    (user(image("example.com/a.png")), ".content[0].image_url.url"),
    (user(image(detail="ultra")), ".content[0].image_url.detail"),
    (user({"type": "image", "image": "a.png"}), ".content[0].image"),
    ({"role": "system", "content": [image()]}, ".content[0]"),
    ({"role": "assistant", "content": [image()]}, ".content[0]"),
    ({"role": "tool", "content": "42"}, ".tool_call_id"),
    ({"role": "user", "content": "Hi", "tool_calls": [CALL]}, ".tool_calls"),
    ({"role": "assistant", "tool_calls": "f"}, ".tool_calls"),
    ({"role": "assistant", "tool_calls": ["f"]}, ".tool_calls[0]"),
    ({"role": "assistant", "tool_calls": [{**CALL, "type": "x"}]}, ".tool_calls[0].type"),
    ({"role": "assistant", "tool_calls": [{**CALL, "id": None}]}, ".tool_calls[0].id"),
    ({"role": "assistant", "tool_calls": [CALL, {"id": "", "type": "function"}]}, ".tool_calls[1].function"),
    ({"role": "assistant", "tool_calls": [{**CALL, "function": {}}]}, ".tool_calls[0].function.name"),
    ({"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f"}}]}, ".tool_calls[0].function.arguments"),
    ({"role": "assistant", "tool_calls": [{**CALL, "function": {**FUNCTION, "arguments": "{a}"}}]},
     ".tool_calls[0].function.arguments"),
    ({"role": "assistant", "tool_calls": [{**CALL, "function": {**FUNCTION, "arguments": "[" * 10**5}}]},
     ".tool_calls[0].function.arguments"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "expected"), ACCEPTED)
def test_accepted(given: dict[str, Any], expected: Message) -> None:
    assert parse_messages([{"role": "user", "content": "first"}, given]) == [Message("user", "first"), expected]


@pytest.mark.parametrize(("given", "path"), REFUSED)
def test_refused(given: Any, path: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_messages([{"role": "user", "content": "first"}, given])
    assert caught.value.param == "messages[1]" + path
    message = str(caught.value)
    assert message.startswith("messages[1]" + path)
    assert message.endswith(".")
    assert len(message) < 200


@pytest.mark.parametrize("messages", [[], (), "Hi", {"role": "user", "content": "Hi"}, None])
def test_messages_must_be_a_list(messages: Any) -> None:
    with pytest.raises(RequestError) as caught:
        parse_messages(messages)
    assert caught.value.param == "messages"
