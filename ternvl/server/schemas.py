"""What a client may send to `POST /v1/chat/completions`: the page's request schema, with its undefined parts defined.

Types are JSON's: a string is no number, `true` is no integer, 1.0 is the integer 1 as in JSON Schema. `null` in an
optional field is the same as leaving it out. Fields that no one defines are accepted and kept in `model_extra`. Long
lists are left at their first error: a request cannot make the server describe millions of them.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError

TAG_MARK = "@"
"""Begins the name of a branch of a union, which is no part of a field's path."""

REFUSED = "refused."
"""Begins the type of our own errors; the field that they mean follows."""

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]+")
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


def _refuse(field: str, message: str, code: str | None = None) -> PydanticCustomError:
    """An error at `field` of the model that raises it, or at the value itself where `field` is empty."""
    return PydanticCustomError(f"{REFUSED}{field}", message, {"code": code})


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _uri(value: str) -> str:
    if not _URI.fullmatch(value) or _BROKEN_ESCAPE.search(value):
        raise _refuse("", "must be a URI such as https://example.com/image.jpg or data:image/png;base64,AAAA")
    return value


def _not_empty(value: str) -> str:
    if not value:
        raise _refuse("", "must not be an empty string")
    return value


def _kind(value: Any) -> str | None:
    """The branch of a field that is a string or an array."""
    return "@string" if isinstance(value, str) else "@array" if isinstance(value, list) else None


def _by(field: str, *names: str) -> Discriminator:
    """Chooses a branch of a union of objects by the value of `field`, one of `names`."""

    def branch(value: Any) -> str | None:
        name = value.get(field) if isinstance(value, dict) else getattr(value, field, None)
        return TAG_MARK + name if name in names else None

    wanted = ", ".join(repr(name) for name in names)
    return Discriminator(
        branch,
        custom_error_type=f"{REFUSED}{field}",
        custom_error_message=f"is required and must be one of {wanted}",
    )


_STRING_OR_ARRAY = Discriminator(_kind, custom_error_type=REFUSED, custom_error_message="must be a string or an array")

_STRING_OR_OBJECT = Discriminator(
    lambda value: "@string" if isinstance(value, str) else "@object" if isinstance(value, dict | BaseModel) else None,
    custom_error_type=REFUSED,
    custom_error_message="must be a string or an object",
)

Integer = Annotated[int, BeforeValidator(_whole)]
Number = Annotated[float, Field(allow_inf_nan=False)]
NonEmpty = Annotated[str, AfterValidator(_not_empty)]


class Schema(BaseModel):
    """Base of all parts of a request: strict types, unknown fields kept."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)


class TextPart(Schema):
    """A piece of text in a message."""

    type: Literal["text"]
    text: str


class ImageUrl(Schema):
    """Where an image is: `data:`, `http(s):` or, where allowed, `file:`."""

    url: Annotated[str, AfterValidator(_uri)]
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(Schema):
    """An image in a user message."""

    type: Literal["image_url"]
    image_url: ImageUrl


TextContent = Annotated[
    Annotated[str, Tag("@string")] | Annotated[list[TextPart], Field(fail_fast=True), Tag("@array")],
    _STRING_OR_ARRAY,
]
Part = Annotated[
    Annotated[TextPart, Tag("@text")] | Annotated[ImagePart, Tag("@image_url")],
    _by("type", "text", "image_url"),
]
UserContent = Annotated[
    Annotated[str, Tag("@string")] | Annotated[list[Part], Field(fail_fast=True), Tag("@array")], _STRING_OR_ARRAY
]


class SystemMessage(Schema):
    """Instructions; text only."""

    role: Literal["system"]
    content: TextContent


class UserMessage(Schema):
    """A turn of the user: text and images."""

    role: Literal["user"]
    content: UserContent


class FunctionCall(Schema):
    """What an assistant's tool call calls; `arguments` is a string of JSON."""

    name: NonEmpty
    arguments: str


class ToolCall(Schema):
    """A tool call that the assistant made in an earlier turn."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class AssistantMessage(Schema):
    """An earlier answer: text, or tool calls with or without text."""

    role: Literal["assistant"]
    content: TextContent | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True)] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.content is None and not self.tool_calls:
            raise _refuse("content", "is required in an assistant message without tool_calls")
        return self


class ToolMessage(Schema):
    """What a tool answered."""

    role: Literal["tool"]
    content: TextContent
    tool_call_id: str


Message = Annotated[
    Annotated[SystemMessage, Tag("@system")]
    | Annotated[UserMessage, Tag("@user")]
    | Annotated[AssistantMessage, Tag("@assistant")]
    | Annotated[ToolMessage, Tag("@tool")],
    _by("role", "system", "user", "assistant", "tool"),
]


class FunctionDefinition(Schema):
    """A function the model may call; `parameters` is any JSON Schema of an object."""

    name: NonEmpty
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolDefinition(Schema):
    """A tool of a request."""

    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(Schema):
    """Which function is to be called."""

    name: NonEmpty


class NamedToolChoice(Schema):
    """Asks for a call of one function."""

    type: Literal["function"]
    function: FunctionName


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("@string")] | Annotated[NamedToolChoice, Tag("@object")],
    _STRING_OR_OBJECT,
]


class TextFormat(Schema):
    """No form at all."""

    type: Literal["text"]


class JsonObjectFormat(Schema):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(Schema):
    """A JSON Schema; it is held to whatever `strict` says."""

    name: NonEmpty
    description: str | None = None
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(Schema):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[
    Annotated[TextFormat, Tag("@text")]
    | Annotated[JsonObjectFormat, Tag("@json_object")]
    | Annotated[JsonSchemaFormat, Tag("@json_schema")],
    _by("type", "text", "json_object", "json_schema"),
]

JsonText = Annotated[
    Annotated[str, Tag("@string")] | Annotated[dict[str, Any], Tag("@object")],
    _STRING_OR_OBJECT,
]
"""A JSON Schema, or its text."""
Choices = Annotated[list[NonEmpty], Field(min_length=1, fail_fast=True)]


class StructuredOutputs(Schema):
    """One of vLLM's forms of an answer."""

    json_schema: JsonText | None = Field(None, alias="json")
    json_object: Literal[True] | None = None
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        for name in ("disable_additional_properties", "disable_any_whitespace", "structural_tag", "whitespace_pattern"):
            if (self.model_extra or {}).get(name):
                raise _refuse(name, "is not supported", code="unsupported_parameter")
        given = [value for name in type(self).model_fields if (value := getattr(self, name)) is not None]
        if len(given) != 1:
            raise _refuse("", "must have exactly one of json, json_object, regex, choice, grammar")
        return self


class StreamOptions(Schema):
    """`include_usage` adds a last chunk with the token counts."""

    include_usage: bool | None = None


class ProcessorOptions(Schema):
    """How images become tiles, as in vLLM's `mm_processor_kwargs`."""

    max_dynamic_patch: Annotated[Integer, Field(ge=1, le=40)] | None = None


class ChatRequest(Schema):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    model: str | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    n: Annotated[Integer, Field(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[Integer, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[Integer, Field(ge=1)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    tools: Annotated[list[ToolDefinition], Field(fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: JsonText | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None
    seed: Annotated[Integer, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: (
        Annotated[
            Annotated[NonEmpty, Tag("@string")] | Annotated[list[NonEmpty], Field(max_length=16), Tag("@array")],
            _STRING_OR_ARRAY,
        ]
        | None
    ) = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Integer, Field(ge=0, le=20)] | None = None
    user: str | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    top_k: Annotated[Integer, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[Number, Field(ge=0.01, le=2)] | None = None
    min_tokens: Annotated[Integer, Field(ge=0)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[list[Annotated[Integer, Field(ge=0)]], Field(fail_fast=True)] | None = None
    mm_processor_kwargs: ProcessorOptions | None = None
    cache_salt: NonEmpty | None = None

    @property
    def has_images(self) -> bool:
        """Whether any message holds an image."""
        contents = (message.content for message in self.messages if isinstance(message, UserMessage))
        return any(isinstance(part, ImagePart) for parts in contents if isinstance(parts, list) for part in parts)

    @property
    def answer_limit(self) -> int | None:
        """The smaller of `max_tokens` and `max_completion_tokens`; None where neither is given."""
        given = [limit for limit in (self.max_tokens, self.max_completion_tokens) if limit is not None]
        return min(given, default=None)

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise _refuse("stream_options", "is only allowed when stream is true")
        if self.top_logprobs is not None and not self.logprobs:
            raise _refuse("top_logprobs", "is only allowed when logprobs is true")
        if self.min_tokens is not None and self.answer_limit is not None and self.min_tokens > self.answer_limit:
            raise _refuse("min_tokens", f"is {self.min_tokens}, more than the {self.answer_limit} of max_tokens")
        return self
