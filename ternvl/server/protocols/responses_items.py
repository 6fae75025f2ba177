"""The input items of OpenAI's Responses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Tag

from ternvl.server.schema.images import ImageAddress, TileLimits
from ternvl.server.schema.types import STRING_OR_ARRAY, DetailField, NonEmpty, Schema, by


class InputText(Schema):
    """A piece of text in a message to the model."""

    type: Literal["input_text"]
    text: str


class InputImage(TileLimits):
    """An image in a user message or in the result of a call."""

    type: Literal["input_image"]
    image_url: ImageAddress
    detail: DetailField | None = None


class OutputText(Schema):
    """A piece of text in an earlier answer; the model does not see its `annotations` and `logprobs`."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class RefusalText(Schema):
    """A refusal in an earlier answer, which counts as text."""

    type: Literal["refusal"]
    refusal: str


InputPart = Annotated[
    Annotated[InputText, Tag("@input_text")]
    | Annotated[InputImage, Tag("@input_image")]
    | Annotated[OutputText, Tag("@output_text")]
    | Annotated[RefusalText, Tag("@refusal")],
    by("type", "input_text", "input_image", "output_text", "refusal"),
]
InputContent = Annotated[
    Annotated[str, Tag("@string")] | Annotated[list[InputPart], Field(fail_fast=True), Tag("@array")], STRING_OR_ARRAY
]
OutputPart = Annotated[
    Annotated[InputText, Tag("@input_text")] | Annotated[InputImage, Tag("@input_image")],
    by("type", "input_text", "input_image"),
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
    namespace: str | None = None
    id: str | None = None
    status: str | None = None


class CustomToolCallItem(Schema):
    """A call of a custom tool that the model made in an earlier turn."""

    type: Literal["custom_tool_call"]
    call_id: str
    name: NonEmpty
    input: str
    namespace: str | None = None
    id: str | None = None
    status: str | None = None


class FunctionCallOutputItem(Schema):
    """The result of a call, as text and images."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: str
    output: Annotated[
        Annotated[str, Tag("@string")] | Annotated[list[OutputPart], Field(fail_fast=True), Tag("@array")],
        STRING_OR_ARRAY,
    ]
    id: str | None = None
    status: str | None = None


class ReasoningItem(Schema):
    """The reasoning of an earlier answer, which the prompt leaves out."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: list[Any] | None = None
    content: list[Any] | None = None
    encrypted_content: str | None = None
    status: str | None = None


def _with_type(value: Any) -> Any:
    """Return an item with the type of a message if it has a role but no type."""
    if isinstance(value, dict) and value.get("type") is None and "role" in value:
        return {**value, "type": "message"}
    return value


InputItem = Annotated[
    Annotated[MessageItem, Tag("@message")]
    | Annotated[FunctionCallItem, Tag("@function_call")]
    | Annotated[CustomToolCallItem, Tag("@custom_tool_call")]
    | Annotated[FunctionCallOutputItem, Tag("@output")]
    | Annotated[ReasoningItem, Tag("@reasoning")],
    by(
        "type",
        "message",
        "function_call",
        "custom_tool_call",
        "reasoning",
        output=("function_call_output", "custom_tool_call_output"),
    ),
    BeforeValidator(_with_type),
]
