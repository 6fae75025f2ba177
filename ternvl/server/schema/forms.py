"""What form an answer has: the schemas of `tool_choice`, `response_format` and vLLM's `structured_outputs`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, Tag, model_validator

from ternvl.server.schema.types import STRING_OR_OBJECT, NonEmpty, Schema, by, refuse


class FunctionName(Schema):
    """Which function is to be called."""

    name: NonEmpty


class NamedToolChoice(Schema):
    """Asks for a call of one function."""

    type: Literal["function"]
    function: FunctionName


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("@string")] | Annotated[NamedToolChoice, Tag("@object")],
    STRING_OR_OBJECT,
]


class TextFormat(Schema):
    """No form at all."""

    type: Literal["text"]


class JsonObjectFormat(Schema):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(Schema):
    """A JSON Schema; it is held to whatever `strict` says."""

    name: NonEmpty
    description: str | None = None
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(Schema):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[
    Annotated[TextFormat, Tag("@text")]
    | Annotated[JsonObjectFormat, Tag("@json_object")]
    | Annotated[JsonSchemaFormat, Tag("@json_schema")],
    by("type", "text", "json_object", "json_schema"),
]

JsonText = Annotated[
    Annotated[str, Tag("@string")] | Annotated[dict[str, Any], Tag("@object")],
    STRING_OR_OBJECT,
]
"""A JSON Schema, or its text."""
Choices = Annotated[list[NonEmpty], Field(min_length=1, fail_fast=True)]


class StructuredOutputs(Schema):
    """One of vLLM's forms of an answer."""

    json_schema: JsonText | None = Field(None, alias="json")
    json_object: Literal[True] | None = None
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        for name in ("disable_additional_properties", "disable_any_whitespace", "structural_tag", "whitespace_pattern"):
            if (self.model_extra or {}).get(name):
                raise refuse(name, "is not supported", code="unsupported_parameter")
        given = [value for name in type(self).model_fields if (value := getattr(self, name)) is not None]
        if len(given) != 1:
            raise refuse("", "must have exactly one of json, json_object, regex, choice, grammar")
        return self


class AnthropicFormat(Schema):
    """JSON of a schema, as Anthropic's Messages ask for it."""

    type: Literal["json_schema"]
    json_schema: dict[str, Any] = Field(alias="schema")


class OutputConfig(Schema):
    """The form of a message."""

    format: AnthropicFormat | None = None

    @model_validator(mode="after")
    def _has_no_effort(self) -> Self:
        if (self.model_extra or {}).get("effort") is not None:
            raise refuse("effort", "is not supported", code="unsupported_parameter")
        return self
