"""The types of the answers of `/v1/messages`, as those of the other endpoints in `text_answers.py`."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import TypedDict


class MessageText(TypedDict):
    """A piece of text."""

    type: Literal["text"]
    text: str


class ToolUse(TypedDict):
    """A call of a tool."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class MessageUsage(TypedDict):
    """The numbers of tokens of a message."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class AnthropicMessage(TypedDict):
    """The answer of `POST /v1/messages`."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[MessageText | ToolUse]
    stop_reason: Literal["end_turn", "max_tokens", "tool_use", "stop_sequence"]
    stop_sequence: str | None
    usage: MessageUsage
