"""The request schema of `POST /v1/messages` (Anthropic's Messages)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator

from ternvl.answer.ask import Ask
from ternvl.errors import RequestError
from ternvl.params import MAX_STOP_STRINGS, Grammar, SamplingParams
from ternvl.prompt.messages import Message
from ternvl.sampling.tools import ToolChoice, Tools
from ternvl.server.protocols.messages_blocks import CacheControl, Texts
from ternvl.server.protocols.messages_turns import Turn, text_of
from ternvl.server.schema.forms import FormFields
from ternvl.server.schema.images import PlacedImages, TileFields
from ternvl.server.schema.sampling import TextRequest
from ternvl.server.schema.types import MAX_MESSAGES, MAX_TOOLS, REFUSED, Integer, NonEmpty, Schema, StopString, refuse

_WEB_TOOLS = ("web_search_", "web_fetch_")
"""The beginnings of the types of tools that clients such as Claude Code offer and that the server cannot run."""


class InputTool(Schema):
    """A tool that the model may call.

    Calls are always streamed as they are generated, so `eager_input_streaming` asks for nothing.
    """

    type: Literal["custom"] | None = None
    name: NonEmpty
    description: str | None = None
    input_schema: dict[str, Any]
    input_examples: list[dict[str, Any]] | None = None
    strict: bool | None = None
    eager_input_streaming: bool | None = None
    cache_control: CacheControl | None = None


class WebTool(Schema):
    """A tool that runs on Anthropic's servers. It is left out, and the header `x-ternvl-ignored-fields` names it."""

    passes_unknown: ClassVar[bool] = True

    type: Annotated[str, Field(pattern=f"^({'|'.join(_WEB_TOOLS)})")]


def _branch_of_tool(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    if kind in (None, "custom"):
        return "@custom"
    return "@web" if isinstance(kind, str) and kind.startswith(_WEB_TOOLS) else None


AnthropicTool = Annotated[
    Annotated[InputTool, Tag("@custom")] | Annotated[WebTool, Tag("@web")],
    Discriminator(
        _branch_of_tool,
        custom_error_type=f"{REFUSED}type",
        custom_error_message="must be 'custom', or that of a tool that is left out: web_search_... or web_fetch_...",
    ),
]


class AnthropicToolChoice(Schema):
    """The choice between an answer and calls of tools."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"properties": {"type": {"enum": ["auto", "any", "none"]}}},
                {"required": ["name"], "properties": {"name": {"type": "string"}}},
            ]
        }
    )

    type: Literal["auto", "any", "tool", "none"]
    name: NonEmpty | None = None
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def _names_its_tool(self) -> Self:
        if self.type == "tool" and self.name is None:
            raise refuse("name", "is required", code="missing_required_parameter")
        return self


class UserMetadata(Schema):
    """A label of the request, which does not change the answer."""

    user_id: str | None = None


class AnthropicFormat(Schema):
    """The format of JSON that matches a schema."""

    type: Literal["json_schema"]
    json_schema: dict[str, Any] = Field(alias="schema")


class OutputConfig(Schema):
    """The settings for the form of the message. An `effort` other than "high", the default, has no effect."""

    format: AnthropicFormat | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None

    def ignored(self) -> Iterator[str]:
        """Yield unknown fields and an effort that asks for something."""
        yield from super().ignored()
        if self.effort not in (None, "high"):
            yield "effort"


class ClearThinking(Schema):
    """An edit that removes earlier reasoning, which the prompt leaves out anyway."""

    type: Literal["clear_thinking_20251015"]
    keep: Any = None


class ContextManagement(Schema):
    """The edits of a long conversation. The only edit that is served is one that changes nothing here."""

    edits: Annotated[list[ClearThinking], Field(fail_fast=True)] | None = None


class CountTokensRequest(FormFields, TileFields, PlacedImages):
    """The body of `POST /v1/messages/count_tokens`: the fields that determine the prompt."""

    model: str | None = None
    messages: Annotated[list[Turn], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    system: Texts | None = None
    tools: Annotated[list[AnthropicTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: AnthropicToolChoice | None = None
    output_config: OutputConfig | None = None
    output_format: AnthropicFormat | None = None
    context_management: ContextManagement | None = None

    def ignored(self) -> Iterator[str]:
        """Yield unknown fields and tools that are left out."""
        yield from super().ignored()
        yield from (f"tools[{index}]" for index, tool in enumerate(self.tools or []) if isinstance(tool, WebTool))

    def to_ask(self, params: SamplingParams) -> Ask:
        """Return the ask of the request. Reasoning stays part of the text."""
        turns = [
            message
            for index, each in enumerate(self.messages)
            for message in each.to_messages(f"messages[{index}]", self.placement)
        ]
        if self.system is not None:
            turns.insert(0, Message("system", text_of(self.system), path="system"))
        return Ask(
            input=turns,
            params=replace(params, grammar=self.to_grammar()),
            tools=self._tools(),
            continue_final_message=turns[-1].role == "assistant" and not turns[-1].tool_calls,
            splits_reasoning=False,
            **self.tile_settings,
        )

    def _grammars(self) -> Iterator[Grammar]:
        yield from super()._grammars()
        if self.output_config and self.output_config.format:
            schema = self.output_config.format.json_schema
            yield Grammar.of("json_schema", schema, param="output_config.format.schema")
        if self.output_format:
            yield Grammar.of("json_schema", self.output_format.json_schema, param="output_format.schema")

    def _tools(self) -> Tools:
        choice = self.tool_choice
        tools = [(index, tool) for index, tool in enumerate(self.tools or []) if isinstance(tool, InputTool)]
        return Tools(
            [_tool(tool) for _, tool in tools],
            "auto" if choice is None else _tool_choice(choice),
            not (choice and choice.disable_parallel_tool_use),
            self.closes_objects,
            schema_paths=[f"tools[{index}].input_schema" for index, _ in tools],
            name_path="tool_choice.name",
        )


class MessagesRequest(CountTokensRequest, TextRequest):
    """The body of `POST /v1/messages`. It also accepts the sampling fields of Chat Completions."""

    max_tokens: Annotated[Integer, Field(ge=1)]
    stop_sequences: Annotated[list[StopString], Field(max_length=16)] | None = None
    metadata: UserMetadata | None = None  # type: ignore[assignment]

    @property
    def answer_limit(self) -> int | None:
        """`max_tokens`."""
        return self.max_tokens

    def to_params(self, defaults: SamplingParams) -> SamplingParams:
        """Return the sampling parameters, whose stop strings are those of `stop` and `stop_sequences`."""
        params = super().to_params(defaults)
        stops = (*params.stop, *(self.stop_sequences or ()))
        if len(stops) > MAX_STOP_STRINGS:
            message = f"stop_sequences and stop have {len(stops)} strings; together they may have {MAX_STOP_STRINGS}."
            raise RequestError(message, param="stop_sequences")
        return replace(params, stop=stops)

    def to_ask(self, params: SamplingParams) -> Ask:
        """Return the ask of the request, with its priority and cache salt."""
        return replace(super().to_ask(params), priority=self.priority or 0, cache_salt=self.cache_salt or "")


def _tool(tool: InputTool) -> dict[str, Any]:
    named = tool.model_dump(include={"name", "description", "input_examples", "strict"}, exclude_none=True)
    return {"type": "function", "function": named | {"parameters": tool.input_schema}}


def _tool_choice(choice: AnthropicToolChoice) -> ToolChoice:
    if choice.type == "tool":
        return {"type": "function", "function": {"name": choice.name}}
    return "required" if choice.type == "any" else choice.type
