"""A conversation as the template takes it: roles, text, images, videos and tool calls, free of JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ternvl.errors import RequestError
from ternvl.prompt.parts import (
    ImageInput,
    Media,
    Part,
    Role,
    VideoInput,
    expect,
    json_type,
    one_of,
    parse_part,
    string,
)

__all__ = ["ImageInput", "ImagePlacement", "Message", "Part", "Role", "ToolCall", "parse_messages", "tool_call", "turn"]

ImagePlacement = Literal["auto", "first", "in_place"]
"""Where the images and videos of a user turn stand: images at the placeholders of its text and the rest before it, as
in the official `chat()` ("auto"); all before its text ("first"); where they stand among its texts ("in_place")."""

_ROLES: dict[str, Role] = {role: role for role in get_args(Role)} | {"developer": "system"}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool; `arguments` is a string of JSON, which is incomplete if the answer was cut."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. Only user turns and results of tools have `media`, only assistant turns have `tool_calls`."""

    role: Role
    text: str = ""
    media: tuple[Media, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    path: str = field(default="", compare=False)
    """What the request calls the turn, such as "messages[2]" or "input[0]". Errors name it."""
    parts: tuple[Part, ...] = ()
    """The texts and media in the order in which the prompt has them. If it is empty, images stand at the placeholders
    of the text, and other media before it."""

    @property
    def images(self) -> tuple[ImageInput, ...]:
        """The media that are images."""
        return tuple(each for each in self.media if isinstance(each, ImageInput))

    @property
    def videos(self) -> tuple[VideoInput, ...]:
        """The media that are videos."""
        return tuple(each for each in self.media if isinstance(each, VideoInput))


def turn(
    role: Role,
    content: str | Sequence[Part],
    *,
    path: str,
    tool_calls: tuple[ToolCall, ...] = (),
    placement: ImagePlacement = "auto",
) -> Message:
    """Return the message of a turn, given its text, or its texts and media in their order.

    Several texts are joined by line feeds. The media of a tool's result always stand in place.
    """
    if isinstance(content, str):
        return Message(role, content, tool_calls=tool_calls, path=path)
    text = "\n".join(part for part in content if isinstance(part, str))
    media = tuple(part for part in content if not isinstance(part, str))
    parts: tuple[Part, ...] = ()
    if media and (role == "tool" or placement == "in_place"):
        parts = tuple(content)
    elif media and placement == "first":
        parts = (*media, text)
    return Message(role, text, media, tool_calls, path, parts)


def parse_messages(
    messages: Sequence[Mapping[str, Any] | Message], *, image_placement: ImagePlacement = "auto"
) -> list[Message]:
    """Return OpenAI's message objects as `Message`s, one for one; a `Message` is returned as it is.

    Content is a string or a list of parts: `text`; in user turns and results of tools `image_url` with `url`, `detail`,
    `min_dynamic_patch` and `max_dynamic_patch`, and videos in the forms of `ternvl.prompt.parts`; in assistant turns
    `refusal`. Callers in the same process also have `{"type": "image", "image": <PIL image>}` and `{"type": "video",
    "video": <Path>}`. Several texts are joined by line feeds. Raises RequestError whose `param` is the path of the
    fault, such as "messages[2].content[0].image_url.url".
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise RequestError("messages must be a list of message objects.", param="messages")
    if not messages:
        raise RequestError("messages is empty; a conversation needs at least one message.", param="messages")
    return [_message(message, f"messages[{index}]", image_placement) for index, message in enumerate(messages)]


def _message(message: Any, path: str, placement: ImagePlacement) -> Message:
    if isinstance(message, Message):
        return message
    expect(message, Mapping, "an object", path)
    role = _ROLES[one_of(message, "role", tuple(_ROLES), path)]
    calls = _tool_calls(message, role, path)
    content = _content(message, role, path, may_be_missing=bool(calls))
    if role == "tool":
        string(message, "tool_call_id", path)
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
        raise RequestError(f"{path} must be a string or a list of parts, not {json_type(content)}.", param=path)
    return [parse_part(part, role, f"{path}[{index}]") for index, part in enumerate(content)]


def _tool_calls(message: Mapping[str, Any], role: Role, path: str) -> tuple[ToolCall, ...]:
    calls = message.get("tool_calls") or ()
    path = f"{path}.tool_calls"
    if calls and role != "assistant":
        raise RequestError(f"{path} belongs in assistant messages, not in {role} messages.", param=path)
    if not isinstance(calls, Sequence) or isinstance(calls, (str, bytes)):
        raise RequestError(f"{path} must be a list of calls, not {json_type(calls)}.", param=path)
    return tuple(_tool_call(call, f"{path}[{index}]") for index, call in enumerate(calls))


def _tool_call(call: Any, path: str) -> ToolCall:
    expect(call, Mapping, "an object", path)
    one_of(call, "type", ("function",), path)
    function = call.get("function")
    expect(function, Mapping, "an object", f"{path}.function")
    name = string(function, "name", f"{path}.function")
    arguments = string(function, "arguments", f"{path}.function")
    return tool_call(string(call, "id", path), name, arguments)


def tool_call(id: str, name: str, arguments: str) -> ToolCall:
    """Return an earlier call. `arguments` may be any text, since the answer that held the call may have been cut."""
    return ToolCall(id, name, arguments.strip() or "{}")
