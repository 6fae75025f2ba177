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
from ternvl.prompt.messages import ImageInput, Message, Role, ToolCall, tool_call
from ternvl.sampling.tools import ToolChoice, Tools
from ternvl.server.protocols.responses_items import (
    FunctionCallItem,
    FunctionCallOutputItem,
    InputImage,
    InputItem,
    InputText,
    MessageItem,
    OutputText,
)
from ternvl.server.schema.forms import FormFields, FunctionName, JsonObjectFormat, TextFormat
from ternvl.server.schema.sampling import TextRequest
from ternvl.server.schema.tiles import TileFields
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


class ResponseRequest(TextRequest, FormFields, TileFields):
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
            schema_path="tools[{index}].parameters",
            name_path="tool_choice.name",
        )

    def _turns(self) -> Iterator[Message]:
        if self.instructions is not None:
            yield Message("system", self.instructions, path="instructions")
        if isinstance(self.input, str):
            yield Message("user", self.input, path="input")
            return
        turn: Message | None = None
        for index, item in enumerate(self.input):
            path = f"input[{index}]"
            if isinstance(item, FunctionCallItem) and turn is not None and turn.role == "assistant":
                turn = replace(turn, tool_calls=(*turn.tool_calls, _call(item, path)))
                continue
            if turn is not None:
                yield turn
            turn = _turn(item, path)
        if turn is not None:
            yield turn


class InputTokensRequest(ResponseRequest):
    """The body of `POST /v1/responses/input_tokens`: that of `POST /v1/responses`, whose prompt is counted."""


def _function(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": function}


def _turn(item: MessageItem | FunctionCallItem | FunctionCallOutputItem, path: str) -> Message:
    match item:
        case MessageItem():
            return _message("system" if item.role == "developer" else item.role, item.content, path)
        case FunctionCallItem():
            return Message("assistant", tool_calls=(_call(item, path),), path=path)
        case FunctionCallOutputItem():
            return _message("tool", item.output, path)


def _message(role: Role, content: str | Sequence[InputText | InputImage | OutputText], path: str) -> Message:
    if isinstance(content, str):
        return Message(role, content, path=path)
    images = [part for part in content if isinstance(part, InputImage)]
    texts = [part.text for part in content if not isinstance(part, InputImage)]
    if images and role != "user":
        message = f"{path}.content holds an image; images belong in user messages, not in {role} messages."
        raise RequestError(message, param=f"{path}.content")
    inputs = tuple(ImageInput(part.image_url, part.detail or "auto") for part in images)
    return Message(role, "\n".join(texts), inputs, path=path)


def _call(item: FunctionCallItem, path: str) -> ToolCall:
    return tool_call(item.call_id, item.name, item.arguments, f"{path}.arguments")
