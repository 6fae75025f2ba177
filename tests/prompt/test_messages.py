"""OpenAI's message objects: which are accepted, and which are refused with the path of the error."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ternvl.errors import RequestError
from ternvl.prompt.messages import ImageInput, Message, ToolCall, parse_messages
from ternvl.prompt.parts import Sampling, VideoInput

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
    ({"role": "developer", "content": "Hi"}, Message("system", "Hi")),
    ({"role": "assistant", "content": None}, Message("assistant")),
    ({"role": "assistant", "content": None, "tool_calls": []}, Message("assistant")),
    ({"role": "assistant", "content": "x", "tool_calls": None, "refusal": None}, Message("assistant", "x")),
    ({"role": "assistant", "content": None, "refusal": "no"}, Message("assistant", "no")),
    ({"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, Message("assistant", "no")),
    ({"role": "tool", "content": None, "tool_call_id": "c1"}, Message("tool")),
    ({"role": "tool", "content": [text("a"), image(), text("b")], "tool_call_id": "c1"},
     Message("tool", "a\nb", (ImageInput(URL),), parts=("a", ImageInput(URL), "b"))),
    (user(image(min_dynamic_patch=2, max_dynamic_patch=6)), Message("user", "", (ImageInput(URL, "auto", 2, 6),))),
    *[({"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": cut}}]},
       Message("assistant", tool_calls=(ToolCall("c1", "f", cut),)))
      for cut in ('{"a": [1, "b', "{", "{a}", '{"a": ' + "[" * 10**5, '{"a": ' + "1" * 4500 + "}")],
]  # fmt: skip

REFUSED = [
    ("Hi", ""),
    ({"content": "Hi"}, ".role"),
    ({"role": ["user"], "content": "Hi"}, ".role"),
    ({"role": "user"}, ".content"),
    ({"role": "user", "content": None}, ".content"),
    ({"role": "user", "content": 7}, ".content"),
    ({"role": "user", "content": {"type": "text", "text": "a"}}, ".content"),
    ({"role": "assistant", "tool_calls": []}, ".content"),
    ({"role": "tool", "tool_call_id": "c1"}, ".content"),
    (user("Hi"), ".content[0]"),
    (user({"text": "a"}), ".content[0].type"),
    (user({"type": "video_url"}), ".content[0].video_url"),
    (user({"type": "video_url", "video_url": URL}), ".content[0].video_url"),
    (user({"type": "video_url", "video_url": {"url": "a.mp4"}}), ".content[0].video_url.url"),
    (user({"type": "video_url", "video_url": {"url": URL, "num_frames": "8"}}), ".content[0].video_url.num_frames"),
    (user({"type": "video_url", "video_url": {"url": URL, "fps": 0}}), ".content[0].video_url.fps"),
    (user({"type": "video_url", "video_url": {"url": URL}, "fps": math.nan}), ".content[0].fps"),
    (user({"type": "video", "video": "a.mp4"}), ".content[0].video"),
    (user({"type": "video", "video": [URL, "a.png"]}), ".content[0].video[1]"),
    (user({"type": "video", "video": [URL, 7]}), ".content[0].video[1]"),
    (user({"type": "video", "video": None}), ".content[0].video"),
    (user({"type": "video", "video": URL, "nframes": 1.5}), ".content[0].nframes"),
    (user({"type": "input_video", "input_video": {"format": "mp4"}}), ".content[0].input_video.data"),
    ({"role": "assistant", "content": [{"type": "video", "video": URL}]}, ".content[0]"),
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
    (user({"type": "refusal", "refusal": "no"}), ".content[0].type"),
    (user(image(max_dynamic_patch="6")), ".content[0].image_url.max_dynamic_patch"),
    (user(image(min_dynamic_patch=True)), ".content[0].image_url.min_dynamic_patch"),
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


def test_unknown_roles_are_named() -> None:
    with pytest.raises(RequestError, match=r'^messages\[0\].role must be one of .*"developer", not "owner"'):
        parse_messages([{"role": "owner", "content": "Hi"}])


def test_the_request_places_the_images() -> None:
    message = user(text("a"), image(), text("b"))
    (first,) = parse_messages([message], image_placement="first")
    (in_place,) = parse_messages([message], image_placement="in_place")
    assert first == Message("user", "a\nb", (ImageInput(URL),), parts=(ImageInput(URL), "a\nb"))
    assert in_place == Message("user", "a\nb", (ImageInput(URL),), parts=("a", ImageInput(URL), "b"))
    assert in_place.images[0].path == "messages[0].content[1].image_url.url"
    (plain,) = parse_messages([user(text("a"), text("b"))], image_placement="in_place")
    assert plain == Message("user", "a\nb")


@pytest.mark.parametrize(
    ("part", "expected", "path"),
    [
        ({"type": "video_url", "video_url": {"url": URL}}, VideoInput(URL), "video_url.url"),
        (
            {"type": "video_url", "video_url": {"url": URL, "num_frames": 4, "fps": -1, "max_dynamic_patch": 2}},
            VideoInput(URL, Sampling(4), max_dynamic_patch=2),
            "video_url.url",
        ),
        (
            {"type": "video_url", "video_url": {"url": URL}, "fps": 2},
            VideoInput(URL, Sampling(fps=2.0)),
            "video_url.url",
        ),
        (
            {"type": "video_url", "video_url": {"url": URL, "fps": 1.5}, "fps": 2},
            VideoInput(URL, Sampling(fps=1.5)),
            "video_url.url",
        ),
        ({"type": "video", "video": URL, "nframes": 3}, VideoInput(URL, Sampling(3)), "video"),
        ({"type": "video", "video": [URL, URL], "fps": 2}, VideoInput((URL, URL), Sampling(fps=2.0)), "video"),
        ({"type": "video", "video": Path("a.mp4")}, VideoInput(Path("a.mp4")), "video"),
        (
            {"type": "input_video", "input_video": {"data": "AAAA", "format": "mp4"}},
            VideoInput("data:;base64,AAAA"),
            "input_video.data",
        ),
        (
            {"type": "input_video", "input_video": {"data": "data:video/mp4;base64,AAAA"}},
            VideoInput("data:video/mp4;base64,AAAA"),
            "input_video.data",
        ),
    ],
)
def test_videos_come_in_the_forms_of_other_servers(part: dict[str, Any], expected: VideoInput, path: str) -> None:
    (message,) = parse_messages([user(text("a"), part)])
    assert message == Message("user", "a", (expected,))
    assert message.videos[0].path == f"messages[0].content[1].{path}"
    (in_place,) = parse_messages([user(text("a"), part)], image_placement="in_place")
    assert in_place.parts == ("a", expected)
