"""The schemas of the content blocks of Anthropic's Messages."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, Tag

from ternvl.server.schema.types import STRING_OR_ARRAY, NonEmpty, Schema, by, uri


class CacheControl(Schema):
    """A request to cache the prompt up to this block. It has no effect, because the server always caches prompts."""

    type: Literal["ephemeral"]


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
    url: Annotated[str, AfterValidator(uri)]


Source = Annotated[
    Annotated[Base64Source, Tag("@base64")] | Annotated[UrlSource, Tag("@url")], by("type", "base64", "url")
]


class ImageBlock(Schema):
    """An image in a user message."""

    type: Literal["image"]
    source: Source
    cache_control: CacheControl | None = None


class ToolUseBlock(Schema):
    """A call that the model made in an earlier turn."""

    type: Literal["tool_use"]
    id: str
    name: NonEmpty
    input: dict[str, Any]
    cache_control: CacheControl | None = None


Texts = Annotated[
    Annotated[str, Tag("@string")] | Annotated[list[TextBlock], Field(fail_fast=True), Tag("@array")], STRING_OR_ARRAY
]


class ToolResultBlock(Schema):
    """The result of a tool call, as text. In the prompt, "Error: " precedes the text of an error."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: Texts | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None


UserBlock = Annotated[
    Annotated[TextBlock, Tag("@text")]
    | Annotated[ImageBlock, Tag("@image")]
    | Annotated[ToolResultBlock, Tag("@tool_result")],
    by("type", "text", "image", "tool_result"),
]
AssistantBlock = Annotated[
    Annotated[TextBlock, Tag("@text")] | Annotated[ToolUseBlock, Tag("@tool_use")], by("type", "text", "tool_use")
]
