"""The request schema of `POST /v1/responses` (OpenAI's Responses).

The server keeps no responses: `input` holds the whole conversation.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, Tag, model_validator

from ternvl.answer.ask import Ask
from ternvl.errors import RequestError
from ternvl.params import Grammar, SamplingParams
from ternvl.prompt.messages import ImageInput, Message, Part, Role, ToolCall, tool_call, turn
from ternvl.sampling.tools import ToolChoice, Tools
from ternvl.server.protocols.responses_items import (
    CustomToolCallItem,
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
from ternvl.server.protocols.responses_tools import (
    INPUT,
    CalledTool,
    LeftOutTool,
    NamedTool,
    ResponseTool,
    called_tools,
    shown_name,
)
from ternvl.server.schema.forms import FormFields, JsonObjectFormat, TextFormat
from ternvl.server.schema.images import PlacedImages, TileFields
from ternvl.server.schema.sampling import TextRequest
from ternvl.server.schema.types import (
    MAX_MESSAGES,
    MAX_TOOLS,
    STRING_OR_ARRAY,
    STRING_OR_OBJECT,
    Integer,
    NonEmpty,
    Schema,
    by,
    refuse,
)


class ResponseSchemaFormat(Schema):
    """The format of JSON that matches a schema."""

    type: Literal["json_schema"]
    name: NonEmpty
    description: str | None = None
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


Call = FunctionCallItem | CustomToolCallItem

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
        Annotated[str, Tag("@string")]
        | Annotated[list[InputItem], Field(max_length=MAX_MESSAGES, fail_fast=True), Tag("@array")],
        STRING_OR_ARRAY,
    ]
    instructions: str | None = None
    max_output_tokens: Annotated[Integer, Field(ge=1)] | None = None
    tools: Annotated[list[ResponseTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: (
        Annotated[
            Annotated[Literal["none", "auto", "required"], Tag("@string")] | Annotated[NamedTool, Tag("@object")],
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

    @cached_property
    def called_tools(self) -> dict[str, CalledTool]:
        """The tools that the model may call, by the names that it calls them."""
        return {each.shown_name: each for each in reversed(list(called_tools(self.tools or [])))}

    @model_validator(mode="after")
    def _custom_tools_have_names_of_their_own(self) -> Self:
        names = Counter(each.shown_name for each in called_tools(self.tools or []))
        for each in called_tools(self.tools or []):
            if each.is_custom and names[each.shown_name] > 1:
                raise refuse(f"{each.path}.name", "is also the name of another tool, but a custom tool needs its own")
        return self

    @property
    def unenforced(self) -> list[str]:
        """The grammars of custom tools, which only the model reads."""
        return [f"{each.path}.format" for each in called_tools(self.tools or []) if each.unenforced]

    def ignored(self) -> Iterator[str]:
        """Yield unknown fields and tools that are left out."""
        yield from super().ignored()
        left_out = (index for index, tool in enumerate(self.tools or []) if isinstance(tool, LeftOutTool))
        yield from (f"tools[{index}]" for index in left_out)

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
            named = isinstance(self.tool_choice, NamedTool)
            choice = self._named(self.tool_choice.tool_name) if named else self.tool_choice  # type: ignore[union-attr, assignment]
        tools = list(called_tools(self.tools or []))
        return Tools(
            [tool.definition for tool in tools],
            choice,
            self.parallel_tool_calls is not False,
            self.closes_objects,
            schema_paths=[f"{tool.path}.parameters" for tool in tools],
            name_path="tool_choice.name" if getattr(self.tool_choice, "name", None) else "tool_choice.function.name",
        )

    def _named(self, name: str) -> dict[str, Any]:
        """Return the choice of a tool, which the model may call by another name."""
        shown = next((shown for shown, tool in self.called_tools.items() if tool.tool.name == name), name)
        return {"type": "function", "function": {"name": shown}}

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
            if isinstance(item, Call) and message is not None and message.role == "assistant":
                message = replace(message, tool_calls=(*message.tool_calls, _call(item)))
                continue
            if message is not None:
                yield message
            message = self._turn(item, path)
        if message is not None:
            yield message

    def _turn(self, item: MessageItem | Call | FunctionCallOutputItem, path: str) -> Message:
        match item:
            case MessageItem():
                role: Role = "system" if item.role == "developer" else item.role
                return turn(role, _content(item, role, path), path=path, placement=self.placement)
            case FunctionCallItem() | CustomToolCallItem():
                return Message("assistant", tool_calls=(_call(item),), path=path)
            case FunctionCallOutputItem():
                return turn("tool", _parts(item.output, f"{path}.output"), path=path)


class InputTokensRequest(ResponseRequest):
    """The body of `POST /v1/responses/input_tokens`: that of `POST /v1/responses`, whose prompt is counted."""


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


def _call(item: Call) -> ToolCall:
    name = shown_name(item.name, item.namespace)
    if isinstance(item, FunctionCallItem):
        return tool_call(item.call_id, name, item.arguments)
    return tool_call(item.call_id, name, json.dumps({INPUT: item.input}, ensure_ascii=False))
