"""What a client may send to `POST /v1/responses` (OpenAI Responses), and the chat request it stands for.

The server keeps no responses: a conversation comes whole in `input`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag

from ternvl.server.foreign import Foreign
from ternvl.server.schema.fields import served_values_without
from ternvl.server.schema.sampling import DrawingFields
from ternvl.server.schema.types import (
    REFUSED,
    STRING_OR_ARRAY,
    TAG_MARK,
    Integer,
    NonEmpty,
    Schema,
    by,
    uri,
)

RESPONSE_VALUES = served_values_without(
    "tool_choice",
    "parallel_tool_calls",
    background=(False,),
    conversation=(),
    include=([],),
    max_tool_calls=(),
    n=(1,),
    previous_response_id=(),
    prompt=(),
    reasoning=({},),
    stream_options=({}, {"include_obfuscation": False}),
    top_logprobs=(0,),
    truncation=("disabled",),
)


class InputText(Schema):
    """A piece of text in a message to the model."""

    type: Literal["input_text"]
    text: str


class InputImage(Schema):
    """An image in a user message."""

    type: Literal["input_image"]
    image_url: Annotated[str, AfterValidator(uri)]
    detail: Literal["auto", "low", "high"] | None = None


class OutputText(Schema):
    """A piece of text in an earlier answer; its `annotations` and `logprobs` mean nothing to the model."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


InputPart = Annotated[
    Annotated[InputText, Tag("@input_text")]
    | Annotated[InputImage, Tag("@input_image")]
    | Annotated[OutputText, Tag("@output_text")],
    by("type", "input_text", "input_image", "output_text"),
]
InputContent = Annotated[
    Annotated[str, Tag("@string")] | Annotated[list[InputPart], Field(fail_fast=True), Tag("@array")], STRING_OR_ARRAY
]


class MessageItem(Schema):
    """A turn of the conversation."""

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: InputContent
    id: str | None = None
    status: str | None = None


class FunctionCallItem(Schema):
    """A call that the model made in an earlier turn."""

    type: Literal["function_call"]
    call_id: str
    name: NonEmpty
    arguments: str
    id: str | None = None
    status: str | None = None


class FunctionCallOutputItem(Schema):
    """What a function answered."""

    type: Literal["function_call_output"]
    call_id: str
    output: Annotated[
        Annotated[str, Tag("@string")] | Annotated[list[InputText], Field(fail_fast=True), Tag("@array")],
        STRING_OR_ARRAY,
    ]
    id: str | None = None
    status: str | None = None


def _item_kind(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind is None and isinstance(value, dict) and "role" in value:
        return "@message"
    return TAG_MARK + kind if kind in ("message", "function_call", "function_call_output") else None


Item = Annotated[
    Annotated[MessageItem, Tag("@message")]
    | Annotated[FunctionCallItem, Tag("@function_call")]
    | Annotated[FunctionCallOutputItem, Tag("@function_call_output")],
    Discriminator(
        _item_kind,
        custom_error_type=f"{REFUSED}type",
        custom_error_message="must be one of 'message', 'function_call', 'function_call_output'",
    ),
]


class FunctionTool(Schema):
    """A function that the model may call."""

    type: Literal["function"]
    name: NonEmpty
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class TextOptions(Schema):
    """The form of the answer's text."""

    format: dict[str, Any] | None = None
    verbosity: Literal["medium"] | None = None


class ResponseRequest(DrawingFields):
    """The body of `POST /v1/responses`. The other fields mean what they mean in Chat Completions."""

    input: Annotated[
        Annotated[str, Tag("@string")] | Annotated[list[Item], Field(fail_fast=True), Tag("@array")], STRING_OR_ARRAY
    ]
    instructions: str | None = None
    max_output_tokens: Annotated[Integer, Field(ge=1)] | None = None
    tools: Annotated[list[FunctionTool], Field(fail_fast=True)] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None

    def to_chat(self) -> Foreign:
        """The chat request that this stands for."""
        names = {*DrawingFields.model_fields, "parallel_tool_calls"}
        given = self.model_dump(include=names, exclude_none=True)
        fields: dict[str, Any] = {
            "max_tokens": self.max_output_tokens,
            "tools": [_tool(tool) for tool in self.tools] if self.tools else None,
            "tool_choice": _tool_choice(self.tool_choice),
            "response_format": _response_format(self.text),
        }
        turns = list(self._turns())
        body = given | {name: value for name, value in fields.items() if value is not None}
        return Foreign(body | {"messages": [turn for _, turn in turns]}, [path for path, _ in turns], _NAMES)

    def _turns(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Messages of the chat request, each with the path of what it was made from."""
        if self.instructions is not None:
            yield "instructions", {"role": "system", "content": self.instructions}
        if isinstance(self.input, str):
            yield "input", {"role": "user", "content": self.input}
            return
        calling: dict[str, Any] | None = None
        for index, item in enumerate(self.input):
            if isinstance(item, FunctionCallItem) and calling is not None:
                calling.setdefault("tool_calls", []).append(_call(item))
                continue
            turn = _turn(item)
            calling = turn if turn["role"] == "assistant" else None
            yield f"input[{index}]", turn


_NAMES = (
    (r"messages$", "input"),
    (r"max_tokens$", "max_output_tokens"),
    (r"response_format\.json_schema", "text.format"),
    (r"response_format", "text.format"),
    (r"tools\[(\d+)\]\.function", r"tools[\1]"),
)


def _turn(item: MessageItem | FunctionCallItem | FunctionCallOutputItem) -> dict[str, Any]:
    match item:
        case MessageItem():
            role = "system" if item.role == "developer" else item.role
            return {"role": role, "content": _content(item.content)}
        case FunctionCallItem():
            return {"role": "assistant", "tool_calls": [_call(item)]}
        case FunctionCallOutputItem():
            return {"role": "tool", "tool_call_id": item.call_id, "content": _content(item.output)}


def _call(item: FunctionCallItem) -> dict[str, Any]:
    return {"id": item.call_id, "type": "function", "function": {"name": item.name, "arguments": item.arguments}}


def _content(content: str | list[Any]) -> str | list[dict[str, Any]]:
    return content if isinstance(content, str) else [_part(part) for part in content]


def _part(part: InputText | InputImage | OutputText) -> dict[str, Any]:
    if isinstance(part, InputImage):
        return {"type": "image_url", "image_url": {"url": part.image_url, "detail": part.detail}}
    return {"type": "text", "text": part.text}


def _tool(tool: FunctionTool) -> dict[str, Any]:
    return {"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)}


def _tool_choice(choice: Any) -> Any:
    if isinstance(choice, dict) and choice.get("type") == "function" and "name" in choice:
        return {"type": "function", "function": {"name": choice["name"]}}
    return choice


def _response_format(text: TextOptions | None) -> dict[str, Any] | None:
    wanted = text.format if text else None
    if wanted is None or wanted.get("type") != "json_schema":
        return wanted
    return {"type": "json_schema", "json_schema": {name: value for name, value in wanted.items() if name != "type"}}
