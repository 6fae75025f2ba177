"""The request schema of `POST /v1/responses` (OpenAI's Responses).

The server keeps no responses: `input` holds the whole conversation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, Tag, model_validator

from ternvl.answer.ask import Ask
from ternvl.errors import RequestError
from ternvl.params import Grammar, SamplingParams
from ternvl.prompt.messages import ImageInput, Message, Part, Role, ToolCall, tool_call, turn
from ternvl.sampling.tools import ToolChoice, Tools
from ternvl.server.protocols.responses_items import (
    FunctionCallItem,
    FunctionCallOutputItem,
    InputImage,
    InputItem,
    InputText,
    MessageItem,
    OutputText,
    ReasoningItem,
    RefusalText,
)
from ternvl.server.schema.forms import FormFields, FunctionName, JsonObjectFormat, TextFormat
from ternvl.server.schema.images import PlacedImages, TileFields
from ternvl.server.schema.sampling import TextRequest
from ternvl.server.schema.types import (
    STRING_OR_ARRAY,
    STRING_OR_OBJECT,
    Integer,
    NonEmpty,
    Schema,
    by,
    refuse,
)


class FunctionTool(Schema):
    """A function that the model may call."""

    type: Literal["function"]
    name: NonEmpty
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedFunction(Schema):
    """A tool choice that requires a call of one function, in the form of Responses or of Chat Completions."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"required": ["name"], "properties": {"name": {"type": "string"}}},
                {"required": ["function"], "properties": {"function": {"type": "object"}}},
            ]
        }
    )

    type: Literal["function"]
    name: NonEmpty | None = None
    function: FunctionName | None = None

    @model_validator(mode="after")
    def _has_a_name(self) -> Self:
        if self.name is None and self.function is None:
            raise refuse("name", "is required", code="missing_required_parameter")
        return self

    @property
    def function_name(self) -> str:
        """The name of the function, in either form."""
        return self.name or (self.function.name if self.function else "")


class ResponseSchemaFormat(Schema):
    """The format of JSON that matches a schema."""

    type: Literal["json_schema"]
    name: NonEmpty
    description: str | None = None
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


TextFormatField = Annotated[
    Annotated[TextFormat, Tag("@text")]
    | Annotated[JsonObjectFormat, Tag("@json_object")]
    | Annotated[ResponseSchemaFormat, Tag("@json_schema")],
    by("type", "text", "json_object", "json_schema"),
]


class TextOptions(Schema):
    """The settings for the form of the answer's text."""

    format: TextFormatField | None = None
    verbosity: Literal["medium"] | None = None


class ResponseRequest(TextRequest, FormFields, TileFields, PlacedImages):
    """The body of `POST /v1/responses`. It also accepts the sampling fields of Chat Completions."""

    limit_name: ClassVar[str] = "max_output_tokens"

    input: Annotated[
        Annotated[str, Tag("@string")] | Annotated[list[InputItem], Field(fail_fast=True), Tag("@array")],
        STRING_OR_ARRAY,
    ]
    instructions: str | None = None
    max_output_tokens: Annotated[Integer, Field(ge=1)] | None = None
    tools: Annotated[list[FunctionTool], Field(fail_fast=True)] | None = None
    tool_choice: (
        Annotated[
            Annotated[Literal["none", "auto", "required"], Tag("@string")] | Annotated[NamedFunction, Tag("@object")],
            STRING_OR_OBJECT,
        ]
        | None
    ) = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None

    @property
    def answer_limit(self) -> int | None:
        """`max_output_tokens`."""
        return self.max_output_tokens

    def to_ask(self, defaults: SamplingParams) -> Ask:
        """Return the ask of the request. Reasoning stays part of the text."""
        return Ask(
            input=list(self._turns()),
            params=replace(self.to_params(defaults), grammar=self.to_grammar()),
            tools=self._tools(),
            priority=self.priority or 0,
            cache_salt=self.cache_salt or "",
            splits_reasoning=False,
            path="input",
            **self.tile_settings,
        )

    def _grammars(self) -> Iterator[Grammar]:
        yield from super()._grammars()
        wanted = self.text.format if self.text else None
        if isinstance(wanted, ResponseSchemaFormat):
            yield Grammar.of("json_schema", wanted.json_schema, param="text.format.schema")
        elif isinstance(wanted, JsonObjectFormat):
            yield Grammar("json_object", param="text.format")

    def _tools(self) -> Tools:
        choice: ToolChoice = "auto"
        if self.tool_choice is not None:
            named = isinstance(self.tool_choice, NamedFunction)
            choice = _function(name=self.tool_choice.function_name) if named else self.tool_choice  # type: ignore[union-attr, assignment]
        return Tools(
            [_function(**tool.model_dump(exclude={"type"}, exclude_none=True)) for tool in self.tools or []],
            choice,
            self.parallel_tool_calls is not False,
            self.closes_objects,
            schema_path="tools[{index}].parameters",
            name_path="tool_choice.name" if getattr(self.tool_choice, "name", None) else "tool_choice.function.name",
        )

    def _turns(self) -> Iterator[Message]:
        if self.instructions is not None:
            yield Message("system", self.instructions, path="instructions")
        if isinstance(self.input, str):
            yield Message("user", self.input, path="input")
            return
        message: Message | None = None
        for index, item in enumerate(self.input):
            path = f"input[{index}]"
            if isinstance(item, ReasoningItem):
                continue
            if isinstance(item, FunctionCallItem) and message is not None and message.role == "assistant":
                message = replace(message, tool_calls=(*message.tool_calls, _call(item)))
                continue
            if message is not None:
                yield message
            message = self._turn(item, path)
        if message is not None:
            yield message

    def _turn(self, item: MessageItem | FunctionCallItem | FunctionCallOutputItem, path: str) -> Message:
        match item:
            case MessageItem():
                role: Role = "system" if item.role == "developer" else item.role
                return turn(role, _content(item, role, path), path=path, placement=self.placement)
            case FunctionCallItem():
                return Message("assistant", tool_calls=(_call(item),), path=path)
            case FunctionCallOutputItem():
                return turn("tool", _parts(item.output, f"{path}.output"), path=path)


class InputTokensRequest(ResponseRequest):
    """The body of `POST /v1/responses/input_tokens`: that of `POST /v1/responses`, whose prompt is counted."""


def _function(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": function}


def _content(item: MessageItem, role: Role, path: str) -> str | list[Part]:
    if not isinstance(item.content, str) and role != "user":
        for index, part in enumerate(item.content):
            if isinstance(part, InputImage):
                param = f"{path}.content[{index}]"
                message = f"{param} is an image; images belong in user turns and results of calls, not in {role} turns."
                raise RequestError(message, param=param)
    return _parts(item.content, f"{path}.content")


def _parts(content: str | Sequence[InputText | InputImage | OutputText | RefusalText], path: str) -> str | list[Part]:
    if isinstance(content, str):
        return content
    return [_part(part, f"{path}[{index}]") for index, part in enumerate(content)]


def _part(part: InputText | InputImage | OutputText | RefusalText, path: str) -> Part:
    if not isinstance(part, InputImage):
        return part.refusal if isinstance(part, RefusalText) else part.text
    limits = part.min_dynamic_patch, part.max_dynamic_patch
    return ImageInput(part.image_url, part.detail or "auto", *limits, path=f"{path}.image_url")


def _call(item: FunctionCallItem) -> ToolCall:
    return tool_call(item.call_id, item.name, item.arguments)
