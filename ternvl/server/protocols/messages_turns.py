"""The turns of Anthropic's Messages, and the messages of the prompt that they become."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field, Tag

from ternvl.prompt.messages import ImageInput, ImagePlacement, Message, Part, ToolCall, turn
from ternvl.server.protocols.messages_blocks import (
    AssistantBlock,
    ImageBlock,
    TextBlock,
    Texts,
    ToolResultBlock,
    ToolUseBlock,
    UrlSource,
    UserBlock,
)
from ternvl.server.schema.types import STRING_OR_ARRAY, Schema, by


class SystemTurn(Schema):
    """Instructions within the conversation."""

    role: Literal["system"]
    content: Texts

    def to_messages(self, path: str, placement: ImagePlacement) -> Iterator[Message]:
        """Yield the message of the prompt."""
        yield Message("system", text_of(self.content), path=path)


class DeveloperTurn(SystemTurn):
    """Instructions within the conversation, under OpenAI's newer name."""

    role: Literal["developer"]  # type: ignore[assignment]


class UserTurn(Schema):
    """A turn of the user: text, images and results of tool calls."""

    role: Literal["user"]
    content: Annotated[
        Annotated[str, Tag("@string")] | Annotated[list[UserBlock], Field(fail_fast=True), Tag("@array")],
        STRING_OR_ARRAY,
    ]

    def to_messages(self, path: str, placement: ImagePlacement) -> Iterator[Message]:
        """Yield the messages of the prompt: results of tool calls come before the user's text and images."""
        if isinstance(self.content, str):
            yield Message("user", self.content, path=path)
            return
        for index, block in enumerate(self.content):
            if isinstance(block, ToolResultBlock):
                yield _tool_result(block, f"{path}.content[{index}]")
        parts = _parts(self.content, f"{path}.content")
        if parts or not self.content:
            yield turn("user", parts, path=path, placement=placement)


class AssistantTurn(Schema):
    """An earlier answer. If the conversation ends with an answer without calls, the new answer continues it."""

    role: Literal["assistant"]
    content: Annotated[
        Annotated[str, Tag("@string")] | Annotated[list[AssistantBlock], Field(fail_fast=True), Tag("@array")],
        STRING_OR_ARRAY,
    ]

    def to_messages(self, path: str, placement: ImagePlacement) -> Iterator[Message]:
        """Yield the message of the prompt."""
        if isinstance(self.content, str):
            yield Message("assistant", self.content, path=path)
            return
        texts = [block.text for block in self.content if isinstance(block, TextBlock)]
        calls = tuple(_call(block) for block in self.content if isinstance(block, ToolUseBlock))
        yield Message("assistant", "\n".join(texts), tool_calls=calls, path=path)


Turn = Annotated[
    Annotated[UserTurn, Tag("@user")]
    | Annotated[AssistantTurn, Tag("@assistant")]
    | Annotated[SystemTurn, Tag("@system")]
    | Annotated[DeveloperTurn, Tag("@developer")],
    by("role", "user", "assistant", "system", "developer"),
]


def text_of(texts: str | list[TextBlock]) -> str:
    """Return the text of a system message or field."""
    return texts if isinstance(texts, str) else "\n".join(block.text for block in texts)


def _parts(blocks: Sequence[Schema], path: str) -> list[Part]:
    """Return the texts and images among content blocks, in their order."""
    parts: list[Part] = []
    for index, block in enumerate(blocks):
        if isinstance(block, TextBlock):
            parts.append(block.text)
        elif isinstance(block, ImageBlock):
            parts.append(_image(block, f"{path}[{index}].source"))
    return parts


def _image(block: ImageBlock, path: str) -> ImageInput:
    source = block.source
    if isinstance(source, UrlSource):
        return ImageInput(source.url, path=f"{path}.url")
    return ImageInput(f"data:{source.media_type};base64,{source.data}", path=f"{path}.data")


def _tool_result(block: ToolResultBlock, path: str) -> Message:
    content = block.content or ""
    parts: list[Part] = [content] if isinstance(content, str) else _parts(content, f"{path}.content")
    message = turn("tool", parts, path=path)
    if not block.is_error:
        return message
    if not message.parts:
        return replace(message, text=f"Error: {message.text}")
    begins_with_text = isinstance(parts[0], str)
    return turn("tool", [f"Error: {parts[0]}", *parts[1:]] if begins_with_text else ["Error:", *parts], path=path)


def _call(block: ToolUseBlock) -> ToolCall:
    return ToolCall(block.id, block.name, json.dumps(block.input, ensure_ascii=False))
