"""The chat template `internvl2_5`: renders messages as pieces of text, control tokens and image slots.

Source: OpenGVLab/InternVL, `conversation.py`, and for tools the template of Qwen2.5-Instruct, which the language model
was trained on. A control token is a separate piece, so that the same characters in a user's text stay text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, groupby
from typing import Any

from ternvl.prompt.messages import Message
from ternvl.prompt.parts import Part, VideoInput
from ternvl.tool_form import TAIL, head

IM_START, IM_END = "<|im_start|>", "<|im_end|>"


@dataclass(frozen=True, slots=True)
class Control:
    """A control token, which only the template can produce."""

    token: str


@dataclass(frozen=True, slots=True)
class ImageSlot:
    """The position of image or frame number `index` (from 0) of the conversation."""

    index: int


Piece = str | Control | ImageSlot

PLACEHOLDERS = ("<IMAGE_TOKEN>", "<image>")
"""Marks of an image's place in the text of its turn: LMDeploy's, which evaluation adapters send, and the official."""

_TOOLS = """

# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{signatures}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def render(
    messages: Sequence[Message],
    *,
    system_message: str,
    tools: Sequence[Mapping[str, Any]] = (),
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    frames: Iterable[int] = (),
) -> list[Piece]:
    """Return the pieces of a conversation, in order.

    `system_message` is used if the conversation does not begin with a system message. The images of a turn stand in the
    order of its `parts`; without them at the placeholders of its text, if it has one for each image, and otherwise
    before the text, as in the official `chat()`. If a turn has several images and no placeholders, they are numbered
    through the conversation. `frames` are the numbers of frames of its videos. The frames of a video stand on lines of
    their own, numbered as in the official training data.
    `tools` are OpenAI tool definitions. With `continue_final_message`, the last turn is left open and no further turn
    begins.
    """
    messages = list(messages)
    if not messages or messages[0].role != "system":
        messages.insert(0, Message("system", system_message))
    if tools:
        messages[0] = Message("system", messages[0].text + _render_tools(tools))
    pieces: list[Piece] = []
    media = _Media(frames)
    for is_tool, group in groupby(messages, key=lambda message: message.role == "tool"):
        for turns in [list(group)] if is_tool else [[turn] for turn in group]:
            pieces += [Control(IM_START), _role(turns[0]) + "\n"]
            shown = media.shown(turns)
            pieces += _tool_responses(turns, shown) if is_tool else _turn(turns[0], shown)
            pieces += [Control(IM_END), "\n"]
    if continue_final_message:
        return pieces[:-2]
    if add_generation_prompt:
        pieces += [Control(IM_START), "assistant\n"]
    return pieces


def _role(message: Message) -> str:
    return "user" if message.role == "tool" else message.role


class _Media:
    """Numbers the images and frames of a conversation, turn by turn."""

    def __init__(self, frames: Iterable[int]) -> None:
        self._frames = iter(frames)
        self._images = count(1)
        self._slots = map(ImageSlot, count())

    def shown(self, turns: Sequence[Message]) -> list[list[Piece]]:
        """Return the pieces of each image and video of turns. Images are numbered if there are several."""
        is_numbered = sum(len(turn.images) for turn in turns) > 1
        return [
            self._video() if isinstance(each, VideoInput) else self._image(is_numbered=is_numbered)
            for turn in turns
            for each in turn.media
        ]

    def _image(self, *, is_numbered: bool) -> list[Piece]:
        number, slot = next(self._images), next(self._slots)
        return [f"Image-{number}: ", slot] if is_numbered else [slot]

    def _video(self) -> list[Piece]:
        pieces: list[Piece] = []
        for number in range(1, next(self._frames) + 1):
            pieces += ["\n"] * (number > 1) + [f"Frame-{number}: ", next(self._slots)]
        return pieces


def _turn(message: Message, shown: Sequence[list[Piece]]) -> Iterator[Piece]:
    parts, num_images = message.parts, len(message.images)
    if not parts and num_images and (texts := _split_at_placeholders(message.text, num_images)):
        yield from _at_placeholders(message, texts, shown)
        return
    yield from _in_order(parts or (*message.media, turn_text(message)), iter(shown))
    if parts and not isinstance(parts[-1], str):
        yield "\n"


def _at_placeholders(message: Message, texts: Sequence[str], shown: Sequence[list[Piece]]) -> Iterator[Piece]:
    """Yield videos, each on lines of its own, and then texts with the images between them, without their labels."""
    images: list[Piece] = []
    for media, pieces in zip(message.media, shown, strict=True):
        if isinstance(media, VideoInput):
            yield from (*pieces, "\n")
        else:
            images.append(pieces[-1])
    for text, image in zip(texts, images, strict=False):
        yield from (text, image)
    yield texts[-1]


def _split_at_placeholders(text: str, num_images: int) -> list[str]:
    """Return the texts around the first `num_images` placeholders of one kind; an empty list if there are fewer."""
    for placeholder in PLACEHOLDERS:
        if text.count(placeholder) >= num_images:
            return text.split(placeholder, num_images)
    return []


def _in_order(parts: Sequence[Part], shown: Iterator[list[Piece]]) -> Iterator[Piece]:
    """Yield texts and media, each on lines of its own. `shown` are the pieces of the media."""
    for index, part in enumerate(parts):
        if index:
            yield "\n"
        yield from [part] if isinstance(part, str) else next(shown)


def turn_text(message: Message) -> str:
    """Return the text of a turn, followed by its tool calls."""
    calls = [head(call.name) + call.arguments + TAIL for call in message.tool_calls]
    return "\n".join([message.text] * bool(message.text) + calls)


def _tool_responses(messages: Sequence[Message], shown: Sequence[list[Piece]]) -> Iterator[Piece]:
    remaining = iter(shown)
    for index, message in enumerate(messages):
        yield "\n<tool_response>\n" if index else "<tool_response>\n"
        parts = message.parts or (*message.media, *[message.text] * (bool(message.text) or not message.media))
        yield from _in_order(parts, remaining)
        yield "\n</tool_response>"


def _render_tools(tools: Sequence[Mapping[str, Any]]) -> str:
    return _TOOLS.format(signatures="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
