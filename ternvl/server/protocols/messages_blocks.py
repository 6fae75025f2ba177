"""The schemas of the content blocks of Anthropic's Messages."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, Tag

from ternvl.server.schema.images import ImageAddress
from ternvl.server.schema.types import STRING_OR_ARRAY, NonEmpty, Schema, by


class CacheControl(Schema):
    """A request to cache the prompt up to this block. It has no effect, because the server always caches prompts."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None
    scope: str | None = None


class TextBlock(Schema):
    """A piece of text."""

    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None
    citations: list[Any] | None = Field(default=None, max_length=0)


class Base64Source(Schema):
    """The bytes of an image as Base64."""

    type: Literal["base64"]
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: NonEmpty


class UrlSource(Schema):
    """The address of an image."""

    type: Literal["url"]
    url: ImageAddress


Source = Annotated[
    Annotated[Base64Source, Tag("@base64")] | Annotated[UrlSource, Tag("@url")], by("type", "base64", "url")
]


class ImageBlock(Schema):
    """An image in a user message or in the result of a tool call."""

    type: Literal["image"]
    source: Source
    cache_control: CacheControl | None = None


class ThinkingBlock(Schema):
    """The reasoning of an earlier answer, which the prompt leaves out."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(Schema):
    """Encrypted reasoning of an earlier answer, which the prompt leaves out."""

    type: Literal["redacted_thinking"]
    data: str


class ToolUseBlock(Schema):
    """A call that the model made in an earlier turn; its input is incomplete if the call was cut."""

    type: Literal["tool_use"]
    id: str
    name: NonEmpty
    input: dict[str, Any]
    cache_control: CacheControl | None = None


Texts = Annotated[
    Annotated[str, Tag("@string")] | Annotated[list[TextBlock], Field(fail_fast=True), Tag("@array")], STRING_OR_ARRAY
]


ResultBlock = Annotated[
    Annotated[TextBlock, Tag("@text")] | Annotated[ImageBlock, Tag("@image")], by("type", "text", "image")
]


class ToolResultBlock(Schema):
    """The result of a tool call, as text and images. In the prompt, "Error: " precedes the text of an error."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: (
        Annotated[
            Annotated[str, Tag("@string")] | Annotated[list[ResultBlock], Field(fail_fast=True), Tag("@array")],
            STRING_OR_ARRAY,
        ]
        | None
    ) = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None


UserBlock = Annotated[
    Annotated[TextBlock, Tag("@text")]
    | Annotated[ImageBlock, Tag("@image")]
    | Annotated[ToolResultBlock, Tag("@tool_result")],
    by("type", "text", "image", "tool_result"),
]
AssistantBlock = Annotated[
    Annotated[TextBlock, Tag("@text")]
    | Annotated[ToolUseBlock, Tag("@tool_use")]
    | Annotated[ThinkingBlock, Tag("@thinking")]
    | Annotated[RedactedThinkingBlock, Tag("@redacted_thinking")],
    by("type", "text", "tool_use", "thinking", "redacted_thinking"),
]
