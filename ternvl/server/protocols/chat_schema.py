"""What a client may send to `POST /v1/chat/completions`: the page's request schema, its undefined parts defined."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, Tag, model_validator

from ternvl.server.schema.forms import Choices, JsonText, ResponseFormat, StructuredOutputs, ToolChoice
from ternvl.server.schema.sampling import SamplingFields
from ternvl.server.schema.types import STRING_OR_ARRAY, Integer, NonEmpty, Schema, by, refuse, uri


class TextPart(Schema):
    """A piece of text in a message."""

    type: Literal["text"]
    text: str


class ImageUrl(Schema):
    """Where an image is: `data:`, `http(s):` or, where allowed, `file:`."""

    url: Annotated[str, AfterValidator(uri)]
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(Schema):
    """An image in a user message."""

    type: Literal["image_url"]
    image_url: ImageUrl


TextContent = Annotated[
    Annotated[str, Tag("@string")] | Annotated[list[TextPart], Field(fail_fast=True), Tag("@array")],
    STRING_OR_ARRAY,
]
Part = Annotated[
    Annotated[TextPart, Tag("@text")] | Annotated[ImagePart, Tag("@image_url")],
    by("type", "text", "image_url"),
]
UserContent = Annotated[
    Annotated[str, Tag("@string")] | Annotated[list[Part], Field(fail_fast=True), Tag("@array")], STRING_OR_ARRAY
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
    tool_calls: Annotated[list[ToolCall], Field(min_length=1, fail_fast=True)] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.content is None and not self.tool_calls:
            raise refuse("content", "is required in an assistant message without tool_calls")
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
    by("role", "system", "user", "assistant", "tool"),
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


class ProcessorOptions(Schema):
    """How images become tiles, as in vLLM's `mm_processor_kwargs`."""

    max_dynamic_patch: Annotated[Integer, Field(ge=1, le=40)] | None = None


class ChatRequest(SamplingFields):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    tools: Annotated[list[ToolDefinition], Field(fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: JsonText | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Integer, Field(ge=0, le=20)] | None = None
    mm_processor_kwargs: ProcessorOptions | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def has_images(self) -> bool:
        """Whether any message holds an image."""
        contents = (message.content for message in self.messages if isinstance(message, UserMessage))
        return any(isinstance(part, ImagePart) for parts in contents if isinstance(parts, list) for part in parts)

    @model_validator(mode="after")
    def _chat_fields_agree(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise refuse("top_logprobs", "is only allowed when logprobs is true")
        if self.continue_final_message and self.add_generation_prompt:
            raise refuse("continue_final_message", "and add_generation_prompt exclude each other")
        if self.continue_final_message and not _ends_open(self.messages):
            raise refuse("continue_final_message", "needs an assistant message with text and no tool calls at the end")
        return self


def _ends_open(messages: list[Any]) -> bool:
    """Whether the conversation ends in text that the assistant can go on with."""
    last = messages[-1] if messages else None
    return isinstance(last, AssistantMessage) and last.content is not None and not last.tool_calls
