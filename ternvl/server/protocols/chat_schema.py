"""The request schema of `POST /v1/chat/completions`.

It follows the schema of the platform's documentation, and defines the parts that are undefined there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, Tag, model_validator

from ternvl.answer.ask import Ask
from ternvl.params import SamplingParams
from ternvl.prompt.messages import parse_messages
from ternvl.sampling.tools import Tools
from ternvl.server.schema.forms import FormFields, ToolChoiceField
from ternvl.server.schema.images import ImageAddress, PlacedImages, TileFields, TileLimits
from ternvl.server.schema.sampling import SamplingFields
from ternvl.server.schema.types import (
    MAX_MESSAGES,
    MAX_TOOLS,
    STRING_OR_ARRAY,
    DetailField,
    Integer,
    NonEmpty,
    Schema,
    by,
    refuse,
)
from ternvl.server.schema.videos import InputVideoPart, VideoFields, VideoPart, VideoUrlPart


class TextPart(Schema):
    """A piece of text in a message."""

    type: Literal["text"]
    text: str


class ImageUrl(TileLimits):
    """The URL of an image: `data:`, `http:`, `https:` or, if the server allows it, `file:`."""

    url: ImageAddress
    detail: DetailField | None = None


class ImagePart(Schema):
    """An image in a user message or in the result of a tool call."""

    type: Literal["image_url"]
    image_url: ImageUrl


class RefusalPart(Schema):
    """A refusal in an earlier answer, which counts as text."""

    type: Literal["refusal"]
    refusal: str


TextContent = Annotated[
    Annotated[str, Tag("@string")] | Annotated[list[TextPart], Field(fail_fast=True), Tag("@array")],
    STRING_OR_ARRAY,
]
UserPart = Annotated[
    Annotated[TextPart, Tag("@text")]
    | Annotated[ImagePart, Tag("@image_url")]
    | Annotated[VideoUrlPart, Tag("@video_url")]
    | Annotated[VideoPart, Tag("@video")]
    | Annotated[InputVideoPart, Tag("@input_video")],
    by("type", "text", "image_url", "video_url", "video", "input_video"),
]
UserContent = Annotated[
    Annotated[str, Tag("@string")] | Annotated[list[UserPart], Field(fail_fast=True), Tag("@array")], STRING_OR_ARRAY
]
AssistantPart = Annotated[
    Annotated[TextPart, Tag("@text")] | Annotated[RefusalPart, Tag("@refusal")], by("type", "text", "refusal")
]
AssistantContent = Annotated[
    Annotated[str, Tag("@string")] | Annotated[list[AssistantPart], Field(fail_fast=True), Tag("@array")],
    STRING_OR_ARRAY,
]


class NamedMessage(Schema):
    """A message that may have the name of its participant, which stays out of the prompt: the template has no place."""

    name: str | None = None


class SystemMessage(NamedMessage):
    """A system message: instructions as text."""

    role: Literal["system"]
    content: TextContent


class DeveloperMessage(NamedMessage):
    """A system message under OpenAI's newer name."""

    role: Literal["developer"]
    content: TextContent


class UserMessage(NamedMessage):
    """A user message: text, images and videos."""

    role: Literal["user"]
    content: UserContent


class CalledFunction(Schema):
    """The function of a tool call, and its arguments as a string of JSON, which is incomplete if the call was cut."""

    name: NonEmpty
    arguments: str


class AssistantToolCall(Schema):
    """A tool call that the assistant made in an earlier turn."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(NamedMessage):
    """An assistant message: text, or tool calls with or without text. The prompt leaves its reasoning out."""

    role: Literal["assistant"]
    content: AssistantContent | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: Annotated[list[AssistantToolCall], Field(fail_fast=True)] | None = None

    @model_validator(mode="after")
    def _is_not_empty(self) -> Self:
        if "content" not in self.model_fields_set and self.refusal is None and not self.tool_calls:
            raise refuse("content", "is required in an assistant message without tool_calls")
        self.refuse_extra("is not supported", "function_call", "audio")
        return self


class ToolMessage(NamedMessage):
    """A tool message: the result of a tool call, as text, images and videos."""

    role: Literal["tool"]
    content: UserContent | None
    tool_call_id: str


ChatMessage = Annotated[
    Annotated[SystemMessage, Tag("@system")]
    | Annotated[DeveloperMessage, Tag("@developer")]
    | Annotated[UserMessage, Tag("@user")]
    | Annotated[AssistantMessage, Tag("@assistant")]
    | Annotated[ToolMessage, Tag("@tool")],
    by("role", "system", "developer", "user", "assistant", "tool"),
]


class FunctionDefinition(Schema):
    """A function that the model may call. `parameters` is the JSON Schema of its arguments, an object."""

    passes_unknown: ClassVar[bool] = True

    name: NonEmpty
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolDefinition(Schema):
    """A tool that the model may call."""

    passes_unknown: ClassVar[bool] = True

    type: Literal["function"]
    function: FunctionDefinition


class ChatRequest(SamplingFields, FormFields, TileFields, VideoFields, PlacedImages):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    tools: Annotated[list[ToolDefinition], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: ToolChoiceField | None = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Integer, Field(ge=0, le=20)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    def to_ask(self, defaults: SamplingParams) -> Ask:
        """Return the ask of the request. Raises RequestError for contradictory messages or forms."""
        return Ask(
            input=parse_messages(
                [message.model_dump(exclude_unset=True) for message in self.messages], image_placement=self.placement
            ),
            params=replace(self.to_params(defaults), grammar=self.to_grammar()),
            tools=self._tools(),
            priority=self.priority or 0,
            cache_salt=self.cache_salt or "",
            add_generation_prompt=self.add_generation_prompt is not False,
            continue_final_message=bool(self.continue_final_message),
            sampling=self.sampling,
            **self.tile_settings,
        )

    def _tools(self) -> Tools:
        choice = self.tool_choice or "auto"
        return Tools(
            [tool.model_dump(exclude_none=True) for tool in self.tools or []],
            choice if isinstance(choice, str) else choice.model_dump(),
            self.parallel_tool_calls is not False,
            self.closes_objects,
        )

    @model_validator(mode="after")
    def _chat_fields_agree(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise refuse("top_logprobs", "is only allowed when logprobs is true")
        if self.continue_final_message and self.add_generation_prompt:
            raise refuse("continue_final_message", "and add_generation_prompt exclude each other")
        if self.continue_final_message and not _ends_open(self.messages):
            raise refuse(
                "continue_final_message", "needs a last message of the assistant with text and without tool calls"
            )
        return self


def _ends_open(messages: list[Any]) -> bool:
    """Return whether the last message is text of the assistant, which an answer can continue."""
    last = messages[-1] if messages else None
    return isinstance(last, AssistantMessage) and last.content is not None and not last.tool_calls
