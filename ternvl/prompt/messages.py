"""A conversation as the template takes it: roles, text, images and tool calls, free of JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from PIL import Image

from ternvl.errors import RequestError

Role = Literal["system", "user", "assistant", "tool"]
Detail = Literal["auto", "low", "high"]


@dataclass(frozen=True, slots=True)
class ImageInput:
    """One image of a user turn: a URL (`data:`, `http(s):`, `file:`) or an image that is already open."""

    source: str | Image.Image
    detail: Detail = "auto"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool; `arguments` is a string of JSON."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. Only user turns have `images`, only assistant turns have `tool_calls`."""

    role: Role
    text: str = ""
    images: tuple[ImageInput, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    path: str = field(default="", compare=False)
    """What the request calls the turn, such as "messages[2]" or "input[0]". Errors name it."""


_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:.")


def parse_messages(messages: Sequence[Mapping[str, Any] | Message]) -> list[Message]:
    """Return OpenAI's message objects as `Message`s, one for one; a `Message` is returned as it is.

    Content is a string or a list of parts: `text`, in user turns `image_url` with `url` and `detail`, and for callers
    in the same process `{"type": "image", "image": <PIL image>}`. Several texts are joined by line feeds. Raises
    RequestError whose `param` is the path of the fault, such as "messages[2].content[0].image_url.url".
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise RequestError("messages must be a list of message objects.", param="messages")
    if not messages:
        raise RequestError("messages is empty; a conversation needs at least one message.", param="messages")
    return [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _message(message: Any, path: str) -> Message:
    if isinstance(message, Message):
        return message
    _expect(message, Mapping, "an object", path)
    role: Role = _one_of(message, "role", get_args(Role), path)
    calls = _tool_calls(message, role, path)
    if message.get("content") is None and calls:
        return Message(role, tool_calls=calls, path=path)
    text, images = _content(message, role, f"{path}.content")
    if role == "tool":
        _string(message, "tool_call_id", path)
    return Message(role, text, images, calls, path)


def _content(message: Mapping[str, Any], role: Role, path: str) -> tuple[str, tuple[ImageInput, ...]]:
    content = message.get("content")
    if isinstance(content, str):
        return content, ()
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise RequestError(f"{path} must be a string or a list of parts, not {_json_type(content)}.", param=path)
    parts = [_part(part, role, f"{path}[{index}]") for index, part in enumerate(content)]
    texts = [part for part in parts if isinstance(part, str)]
    return "\n".join(texts), tuple(part for part in parts if isinstance(part, ImageInput))


def _part(part: Any, role: Role, path: str) -> str | ImageInput:
    _expect(part, Mapping, "an object", path)
    kind = _one_of(part, "type", ("text", "image_url", "image"), path)
    if kind == "text":
        return _string(part, "text", path)
    if role != "user":
        raise RequestError(f"{path} is an image; images belong in user messages, not in {role} messages.", param=path)
    if kind == "image":
        _expect(part.get("image"), Image.Image, "an open PIL image", f"{path}.image")
        return ImageInput(part["image"], _detail(part, path))
    return _image_url(part.get("image_url"), f"{path}.image_url")


def _image_url(image_url: Any, path: str) -> ImageInput:
    _expect(image_url, Mapping, 'an object with a "url"', path)
    url = _string(image_url, "url", path)
    if not _URI.match(url):
        raise RequestError(f"{path}.url is not a URI; it must begin with data:, http: or https:.", param=f"{path}.url")
    return ImageInput(url, _detail(image_url, path))


def _detail(part: Mapping[str, Any], path: str) -> Detail:
    detail: Detail = "auto" if part.get("detail") is None else _one_of(part, "detail", get_args(Detail), path)
    return detail


def _tool_calls(message: Mapping[str, Any], role: Role, path: str) -> tuple[ToolCall, ...]:
    calls = message.get("tool_calls") or ()
    path = f"{path}.tool_calls"
    if calls and role != "assistant":
        raise RequestError(f"{path} belongs in assistant messages, not in {role} messages.", param=path)
    if not isinstance(calls, Sequence) or isinstance(calls, (str, bytes)):
        raise RequestError(f"{path} must be a list of calls, not {_json_type(calls)}.", param=path)
    return tuple(_tool_call(call, f"{path}[{index}]") for index, call in enumerate(calls))


def _tool_call(call: Any, path: str) -> ToolCall:
    _expect(call, Mapping, "an object", path)
    _one_of(call, "type", ("function",), path)
    function = call.get("function")
    _expect(function, Mapping, "an object", f"{path}.function")
    name = _string(function, "name", f"{path}.function")
    arguments = _string(function, "arguments", f"{path}.function")
    return tool_call(_string(call, "id", path), name, arguments, f"{path}.function.arguments")


def tool_call(id: str, name: str, arguments: str, path: str) -> ToolCall:
    """Return an earlier call. Raises RequestError that names `path` if `arguments` is not JSON."""
    arguments = arguments.strip() or "{}"
    try:
        json.loads(arguments)
    except (ValueError, RecursionError):
        raise RequestError(f"{path} is not JSON; it must be a string of JSON.", param=path) from None
    return ToolCall(id, name, arguments)


def _expect(value: Any, kind: type, words: str, path: str) -> None:
    if not isinstance(value, kind):
        raise RequestError(f"{path} must be {words}, not {_json_type(value)}.", param=path)


def _string(owner: Mapping[str, Any], key: str, path: str) -> str:
    value = owner.get(key)
    _expect(value, str, "a string", f"{path}.{key}")
    return str(value)


def _one_of(owner: Mapping[str, Any], key: str, allowed: Sequence[str], path: str) -> Any:
    value = owner.get(key)
    if value not in allowed:
        shown = _json_type(value) if not isinstance(value, str) else f'"{value[:40]}"'
        words = ", ".join(f'"{choice}"' for choice in allowed)
        raise RequestError(f"{path}.{key} must be one of {words}, not {shown}.", param=f"{path}.{key}")
    return value


def _json_type(value: Any) -> str:
    """What a value is called in an error message; the value itself may be long, or an image."""
    if value is None:
        return "missing or null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), f"a value of type {type(value).__name__}")
