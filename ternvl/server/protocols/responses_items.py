"""The input items of OpenAI's Responses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag

from ternvl.server.schema.types import REFUSED, STRING_OR_ARRAY, TAG_MARK, DetailField, NonEmpty, Schema, by, uri


class InputText(Schema):
    """A piece of text in a message to the model."""

    type: Literal["input_text"]
    text: str


class InputImage(Schema):
    """An image in a user message."""

    type: Literal["input_image"]
    image_url: Annotated[str, AfterValidator(uri)]
    detail: DetailField | None = None


class OutputText(Schema):
    """A piece of text in an earlier answer; the model does not see its `annotations` and `logprobs`."""

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
    """The result of a function call, as text."""

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


InputItem = Annotated[
    Annotated[MessageItem, Tag("@message")]
    | Annotated[FunctionCallItem, Tag("@function_call")]
    | Annotated[FunctionCallOutputItem, Tag("@function_call_output")],
    Discriminator(
        _item_kind,
        custom_error_type=f"{REFUSED}type",
        custom_error_message="must be one of 'message', 'function_call', 'function_call_output'",
    ),
]
