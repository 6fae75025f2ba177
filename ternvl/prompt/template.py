"""The chat template `internvl2_5`: renders messages as pieces of text, control tokens and image slots.

Source: OpenGVLab/InternVL, `conversation.py`, and for tools the template of Qwen2.5-Instruct, which the language model
was trained on. A control token is a separate piece, so that the same characters in a user's text stay text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from ternvl.prompt.messages import Message, Part
from ternvl.tool_form import TAIL, head

IM_START, IM_END = "<|im_start|>", "<|im_end|>"


@dataclass(frozen=True, slots=True)
class Control:
    """A control token, which only the template can produce."""

    token: str


@dataclass(frozen=True, slots=True)
class ImageSlot:
    """The position of image number `index` (from 0) of the conversation."""

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
) -> list[Piece]:
    """Return the pieces of a conversation, in order.

    `system_message` is used if the conversation does not begin with a system message. The images of a turn stand in the
    order of its `parts`; without them at the placeholders of its text, if it has one for each image, and otherwise
    before the text, as in the official `chat()`. If a turn has several images and no placeholders, they are numbered
    through the conversation.
    `tools` are OpenAI tool definitions. With `continue_final_message`, the last turn is left open and no further turn
    begins.
    """
    messages = list(messages)
    if not messages or messages[0].role != "system":
        messages.insert(0, Message("system", system_message))
    if tools:
        messages[0] = Message("system", messages[0].text + _render_tools(tools))
    pieces: list[Piece] = []
    num_images = 0
    for is_tool, group in groupby(messages, key=lambda message: message.role == "tool"):
        for turns in [list(group)] if is_tool else [[turn] for turn in group]:
            pieces += [Control(IM_START), _role(turns[0]) + "\n"]
            slots = list(map(ImageSlot, range(num_images, num_images + sum(len(turn.images) for turn in turns))))
            pieces += _tool_responses(turns, slots) if is_tool else _turn(turns[0], slots)
            pieces += [Control(IM_END), "\n"]
            num_images += len(slots)
    if continue_final_message:
        return pieces[:-2]
    if add_generation_prompt:
        pieces += [Control(IM_START), "assistant\n"]
    return pieces


def _role(message: Message) -> str:
    return "user" if message.role == "tool" else message.role


def _turn(message: Message, slots: Sequence[ImageSlot]) -> Iterator[Piece]:
    parts = message.parts
    if not parts and slots and (texts := _split_at_placeholders(message.text, len(slots))):
        for text, slot in zip(texts, slots, strict=False):
            yield from (text, slot)
        yield texts[-1]
        return
    yield from _in_order(parts or (*message.images, turn_text(message)), slots, is_numbered=len(slots) > 1)
    if parts and not isinstance(parts[-1], str):
        yield "\n"


def _split_at_placeholders(text: str, num_images: int) -> list[str]:
    """Return the texts around the first `num_images` placeholders of one kind; an empty list if there are fewer."""
    for placeholder in PLACEHOLDERS:
        if text.count(placeholder) >= num_images:
            return text.split(placeholder, num_images)
    return []


def _in_order(parts: Sequence[Part], slots: Iterable[ImageSlot], *, is_numbered: bool) -> Iterator[Piece]:
    """Yield texts and images, each on a line of its own. The images are at `slots`, numbered if there are several."""
    remaining = iter(slots)
    for index, part in enumerate(parts):
        if index:
            yield "\n"
        if isinstance(part, str):
            yield part
            continue
        slot = next(remaining)
        if is_numbered:
            yield f"Image-{slot.index + 1}: "
        yield slot


def turn_text(message: Message) -> str:
    """Return the text of a turn, followed by its tool calls."""
    calls = [head(call.name) + call.arguments + TAIL for call in message.tool_calls]
    return "\n".join([message.text] * bool(message.text) + calls)


def _tool_responses(messages: Sequence[Message], slots: Sequence[ImageSlot]) -> Iterator[Piece]:
    remaining = iter(slots)
    for index, message in enumerate(messages):
        yield "\n<tool_response>\n" if index else "<tool_response>\n"
        parts = message.parts or (*message.images, *[message.text] * (bool(message.text) or not message.images))
        yield from _in_order(parts, remaining, is_numbered=len(slots) > 1)
        yield "\n</tool_response>"


def _render_tools(tools: Sequence[Mapping[str, Any]]) -> str:
    return _TOOLS.format(signatures="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
