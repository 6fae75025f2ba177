"""The chat template `internvl2_5`: renders messages as pieces of text, control tokens and image slots.

Source: OpenGVLab/InternVL, `conversation.py`, and for tools the template of Qwen2.5-Instruct, which the language model
was trained on. A control token is a separate piece, so that the same characters in a user's text stay text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from ternvl.prompt.messages import Message
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

    `system_message` is used if the conversation does not begin with a system message. The images of a turn come before
    its text, as in the model's training data; if a turn has several, they are numbered through the conversation.
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
            pieces += _tool_responses(turns) if is_tool else _turn(turns[0], num_images)
            pieces += [Control(IM_END), "\n"]
            num_images += len(turns[0].images)
    if continue_final_message:
        return pieces[:-2]
    if add_generation_prompt:
        pieces += [Control(IM_START), "assistant\n"]
    return pieces


def _role(message: Message) -> str:
    return "user" if message.role == "tool" else message.role


def _turn(message: Message, first_image: int) -> Iterator[Piece]:
    has_several = len(message.images) > 1
    for index in range(first_image, first_image + len(message.images)):
        if has_several:
            yield f"Image-{index + 1}: "
        yield ImageSlot(index)
        yield "\n"
    yield turn_text(message)


def turn_text(message: Message) -> str:
    """Return the text of a turn, followed by its tool calls."""
    calls = [head(call.name) + call.arguments + TAIL for call in message.tool_calls]
    return "\n".join([message.text] * bool(message.text) + calls)


def _tool_responses(messages: Sequence[Message]) -> Iterator[Piece]:
    yield "\n".join(f"<tool_response>\n{message.text}\n</tool_response>" for message in messages)


def _render_tools(tools: Sequence[Mapping[str, Any]]) -> str:
    return _TOOLS.format(signatures="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
