"""The request schema of `POST /v1/messages` (Anthropic's Messages)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from pydantic import Field, Tag, model_validator

from ternvl.answer.ask import Ask
from ternvl.errors import RequestError
from ternvl.params import MAX_STOP_STRINGS, Grammar, SamplingParams
from ternvl.prompt.messages import ImageInput, ImagePlacement, Message, Part, ToolCall, turn
from ternvl.sampling.tools import ToolChoice, Tools
from ternvl.server.protocols.messages_blocks import (
    AssistantBlock,
    CacheControl,
    ImageBlock,
    TextBlock,
    Texts,
    ToolResultBlock,
    ToolUseBlock,
    UrlSource,
    UserBlock,
)
from ternvl.server.protocols.unions import PlacedImages, by
from ternvl.server.schema.forms import FormFields
from ternvl.server.schema.sampling import TextRequest
from ternvl.server.schema.tiles import TileFields
from ternvl.server.schema.types import STRING_OR_ARRAY, Integer, NonEmpty, Schema, StopString, refuse


class SystemTurn(Schema):
    """Instructions within the conversation."""

    role: Literal["system"]
    content: Texts

    def to_messages(self, path: str, placement: ImagePlacement) -> Iterator[Message]:
        """Yield the message of the prompt."""
        yield Message("system", _text(self.content), path=path)


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


class CustomTool(Schema):
    """A tool that the model may call."""

    type: Literal["custom"] | None = None
    name: NonEmpty
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    cache_control: CacheControl | None = None


class AnthropicToolChoice(Schema):
    """The choice between an answer and calls of tools."""

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
    """The settings for the form of the message."""

    format: AnthropicFormat | None = None

    @model_validator(mode="after")
    def _has_no_effort(self) -> Self:
        if (self.model_extra or {}).get("effort") is not None:
            raise refuse("effort", "is not supported", code="unsupported_parameter")
        return self


class CountTokensRequest(FormFields, TileFields, PlacedImages):
    """The body of `POST /v1/messages/count_tokens`: the fields that determine the prompt."""

    model: str | None = None
    messages: Annotated[
        list[
            Annotated[
                Annotated[UserTurn, Tag("@user")]
                | Annotated[AssistantTurn, Tag("@assistant")]
                | Annotated[SystemTurn, Tag("@system")]
                | Annotated[DeveloperTurn, Tag("@developer")],
                by("role", "user", "assistant", "system", "developer"),
            ]
        ],
        Field(min_length=1, fail_fast=True),
    ]
    system: Texts | None = None
    tools: Annotated[list[CustomTool], Field(fail_fast=True)] | None = None
    tool_choice: AnthropicToolChoice | None = None
    output_config: OutputConfig | None = None
    output_format: AnthropicFormat | None = None

    def to_ask(self, params: SamplingParams) -> Ask:
        """Return the ask of the request. Reasoning stays part of the text."""
        turns = [
            message
            for index, each in enumerate(self.messages)
            for message in each.to_messages(f"messages[{index}]", self.placement)
        ]
        if self.system is not None:
            turns.insert(0, Message("system", _text(self.system), path="system"))
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
        return Tools(
            [_tool(tool) for tool in self.tools or []],
            "auto" if choice is None else _tool_choice(choice),
            not (choice and choice.disable_parallel_tool_use),
            schema_path="tools[{index}].input_schema",
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


def _text(texts: str | list[TextBlock]) -> str:
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


def _tool(tool: CustomTool) -> dict[str, Any]:
    named = tool.model_dump(include={"name", "description", "strict"}, exclude_none=True)
    return {"type": "function", "function": named | {"parameters": tool.input_schema}}


def _tool_choice(choice: AnthropicToolChoice) -> ToolChoice:
    if choice.type == "tool":
        return {"type": "function", "function": {"name": choice.name}}
    return "required" if choice.type == "any" else choice.type
