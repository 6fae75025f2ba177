"""A conversation as the template takes it: roles, text, images and tool calls, free of JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from PIL import Image

from ternvl.errors import RequestError
from ternvl.prompt import urls

Role = Literal["system", "user", "assistant", "tool"]
Detail = Literal["auto", "low", "high"]
ImagePlacement = Literal["auto", "first", "in_place"]
"""Where the images of a user turn stand: at the placeholders of its text or else before it, as in the official `chat()`
("auto"); always before its text ("first"); where they stand among its texts ("in_place")."""

_ROLES: dict[str, Role] = {role: role for role in get_args(Role)} | {"developer": "system"}

VIDEO_NOT_SUPPORTED = "is not supported: this server reads no videos; send frames of the video as images"


@dataclass(frozen=True, slots=True)
class ImageInput:
    """One image of a turn: a URL (`data:`, `http(s):`, `file:`) or an image that is already open.

    `min_dynamic_patch` and `max_dynamic_patch` are the fewest and the most tiles that it is cut into, thumbnail apart;
    None leaves them to `detail` and the settings of the request.
    """

    source: str | Image.Image
    detail: Detail = "auto"
    min_dynamic_patch: int | None = None
    max_dynamic_patch: int | None = None
    path: str = field(default="", compare=False)
    """What the request calls the source, such as "messages[0].content[1].image_url.url". Errors name it."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool; `arguments` is a string of JSON, which is incomplete if the answer was cut."""

    id: str
    name: str
    arguments: str


Part = str | ImageInput


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. Only user turns and results of tools have `images`, only assistant turns have `tool_calls`."""

    role: Role
    text: str = ""
    images: tuple[ImageInput, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    path: str = field(default="", compare=False)
    """What the request calls the turn, such as "messages[2]" or "input[0]". Errors name it."""
    parts: tuple[Part, ...] = ()
    """The texts and images in the order in which the prompt has them. If it is empty, the images stand at the
    placeholders of the text or before it."""


def turn(
    role: Role,
    content: str | Sequence[Part],
    *,
    path: str,
    tool_calls: tuple[ToolCall, ...] = (),
    placement: ImagePlacement = "auto",
) -> Message:
    """Return the message of a turn, given its text, or its texts and images in their order.

    Several texts are joined by line feeds. The images of a tool's result always stand in place.
    """
    if isinstance(content, str):
        return Message(role, content, tool_calls=tool_calls, path=path)
    text = "\n".join(part for part in content if isinstance(part, str))
    images = tuple(part for part in content if isinstance(part, ImageInput))
    parts: tuple[Part, ...] = ()
    if images and (role == "tool" or placement == "in_place"):
        parts = tuple(content)
    elif images and placement == "first":
        parts = (*images, text)
    return Message(role, text, images, tool_calls, path, parts)


def parse_messages(
    messages: Sequence[Mapping[str, Any] | Message], *, image_placement: ImagePlacement = "auto"
) -> list[Message]:
    """Return OpenAI's message objects as `Message`s, one for one; a `Message` is returned as it is.

    Content is a string or a list of parts: `text`, in user turns and results of tools `image_url` with `url`, `detail`,
    `min_dynamic_patch` and `max_dynamic_patch`, and for callers in the same process `{"type": "image", "image": <PIL
    image>}`; in assistant turns also `refusal`. Several texts are joined by line feeds. Raises RequestError whose
    `param` is the path of the fault, such as "messages[2].content[0].image_url.url".
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise RequestError("messages must be a list of message objects.", param="messages")
    if not messages:
        raise RequestError("messages is empty; a conversation needs at least one message.", param="messages")
    return [_message(message, f"messages[{index}]", image_placement) for index, message in enumerate(messages)]


def _message(message: Any, path: str, placement: ImagePlacement) -> Message:
    if isinstance(message, Message):
        return message
    _expect(message, Mapping, "an object", path)
    role = _ROLES[_one_of(message, "role", tuple(_ROLES), path)]
    calls = _tool_calls(message, role, path)
    content = _content(message, role, path, may_be_missing=bool(calls))
    if role == "tool":
        _string(message, "tool_call_id", path)
    return turn(role, content, path=path, tool_calls=calls, placement=placement)


def _content(message: Mapping[str, Any], role: Role, path: str, *, may_be_missing: bool) -> str | list[Part]:
    """Return the content of a message. An assistant's may be null, and missing beside tool calls; a result's, null."""
    content, path = message.get("content"), f"{path}.content"
    if content is None and role == "assistant" and isinstance(message.get("refusal"), str):
        return str(message["refusal"])
    if content is None and (may_be_missing or ("content" in message and role in ("assistant", "tool"))):
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise RequestError(f"{path} must be a string or a list of parts, not {_json_type(content)}.", param=path)
    return [_part(part, role, f"{path}[{index}]") for index, part in enumerate(content)]


def _part(part: Any, role: Role, path: str) -> Part:
    _expect(part, Mapping, "an object", path)
    kinds = ("text", "refusal") if role == "assistant" else ("text", "image_url", "image")
    if part.get("type") == "video_url":
        raise RequestError(f"{path} {VIDEO_NOT_SUPPORTED}.", param=path, code="video_not_supported")
    if part.get("type") in ("image_url", "image") and role not in ("user", "tool"):
        raise RequestError(
            f"{path} is an image; images belong in user messages and results of tools, not in {role} messages.",
            param=path,
        )
    kind = _one_of(part, "type", kinds, path)
    if kind in ("text", "refusal"):
        return _string(part, kind, path)
    if kind == "image":
        _expect(part.get("image"), Image.Image, "an open PIL image", f"{path}.image")
        return ImageInput(part["image"], _detail(part, path), *_tiles(part, path), path=f"{path}.image")
    return _image_url(part.get("image_url"), f"{path}.image_url")


def _image_url(image_url: Any, path: str) -> ImageInput:
    _expect(image_url, Mapping, 'an object with a "url"', path)
    url = _string(image_url, "url", path)
    if not urls.scheme_of(url):
        raise RequestError(f"{path}.url is not a URI; it must begin with data:, http: or https:.", param=f"{path}.url")
    return ImageInput(url, _detail(image_url, path), *_tiles(image_url, path), path=f"{path}.url")


def _detail(part: Mapping[str, Any], path: str) -> Detail:
    detail: Detail = "auto" if part.get("detail") is None else _one_of(part, "detail", get_args(Detail), path)
    return detail


def _tiles(part: Mapping[str, Any], path: str) -> tuple[int | None, int | None]:
    """Return the fewest and the most tiles of an image; `PromptBuilder` checks their range."""
    given = [part.get(name) for name in ("min_dynamic_patch", "max_dynamic_patch")]
    for name, value in zip(("min_dynamic_patch", "max_dynamic_patch"), given, strict=True):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise RequestError(f"{path}.{name} must be an integer, not {_json_type(value)}.", param=f"{path}.{name}")
    return given[0], given[1]


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
    return tool_call(_string(call, "id", path), name, arguments)


def tool_call(id: str, name: str, arguments: str) -> ToolCall:
    """Return an earlier call. `arguments` may be any text, since the answer that held the call may have been cut."""
    return ToolCall(id, name, arguments.strip() or "{}")


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
