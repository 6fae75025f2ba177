"""The schemas of `tool_choice`, `response_format` and vLLM's `structured_outputs`, and their grammars."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, Tag, WithJsonSchema, model_validator

from ternvl.errors import RequestError
from ternvl.params import Grammar
from ternvl.server.schema.types import STRING_OR_OBJECT, UNSUPPORTED, NonEmpty, Schema, by, one_of, refuse


class FunctionName(Schema):
    """The function to call."""

    name: NonEmpty


class NamedToolChoice(Schema):
    """A tool choice that requires a call of one function."""

    type: Literal["function"]
    function: FunctionName


ToolChoiceField = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("@string")] | Annotated[NamedToolChoice, Tag("@object")],
    STRING_OR_OBJECT,
]


class _WithoutSchema(Schema):
    @model_validator(mode="after")
    def _has_no_schema(self) -> Self:
        self.refuse_extra("needs the type json_schema", "schema", "json_schema")
        return self


class TextFormat(_WithoutSchema):
    """The format of free text."""

    type: Literal["text"]


class JsonObjectFormat(_WithoutSchema):
    """The format of any JSON object."""

    type: Literal["json_object"]


class NamedSchema(Schema):
    """A JSON Schema with a name. The answer always matches it, whatever the value of `strict` is."""

    name: NonEmpty
    description: str | None = None
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(Schema):
    """The format of JSON that matches a schema."""

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
"""A JSON Schema as an object or as text."""
ChoiceList = Annotated[list[NonEmpty], Field(min_length=1, fail_fast=True)]


def _not_served(value: Any) -> Any:
    if value:
        raise refuse("", "is not supported", code=UNSUPPORTED)
    return value


FalseAlone = Annotated[bool, AfterValidator(_not_served)]
NotServed = Annotated[str, AfterValidator(_not_served), WithJsonSchema({"const": ""})]
_FORMS = ("json_schema", "json_object", "regex", "choice", "grammar")


class StructuredOutputs(Schema):
    """The form of an answer in vLLM's field `structured_outputs`; exactly one form is given, or none with
    `disable_additional_properties` alone.

    Of vLLM's other options, `disable_fallback` changes nothing, and the others may only ask for their defaults.
    """

    model_config = one_of(
        {"json": {"type": ["string", "object"]}},
        {"json_object": {"const": True}},
        {"regex": {"type": "string"}},
        {"choice": {"type": "array"}},
        {"grammar": {"type": "string"}},
        alone={"disable_additional_properties": {"type": "boolean"}},
    )

    json_schema: JsonText | None = Field(None, alias="json")
    json_object: bool | None = None
    regex: str | None = None
    choice: ChoiceList | None = None
    grammar: str | None = None
    disable_fallback: bool | None = None
    disable_any_whitespace: FalseAlone | None = None
    disable_additional_properties: bool | None = None
    whitespace_pattern: NotServed | None = None
    structural_tag: NotServed | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        given = [name for name in _FORMS if getattr(self, name) not in (None, False)]
        if len(given) > 1 or (not given and self.disable_additional_properties is None):
            raise refuse("", "must have exactly one of json, json_object, regex, choice, grammar")
        return self


class FormFields(Schema):
    """The fields that define the form of the answer: OpenAI's `response_format` and vLLM's.

    Every endpoint that generates text has them. An endpoint with a form of its own adds it in `_grammars`.
    """

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: JsonText | None = None
    guided_regex: str | None = None
    guided_choice: ChoiceList | None = None
    guided_grammar: str | None = None

    @property
    def closes_objects(self) -> bool:
        """Whether objects have only the properties that their schema lists, in forms and in the arguments of calls."""
        return self.structured_outputs is None or self.structured_outputs.disable_additional_properties is not False

    def to_grammar(self) -> Grammar | None:
        """Return the grammar of the answer; None for free text. Raises RequestError if the request has two forms."""
        grammars = list(self._grammars())
        if len(grammars) > 1:
            message = (
                f"{grammars[1].param} and {grammars[0].param} are both given, but an answer can have only one form."
            )
            raise RequestError(message, param=grammars[1].param)
        return replace(grammars[0], closed=self.closes_objects) if grammars else None

    def _grammars(self) -> Iterator[Grammar]:
        wanted = self.response_format
        if isinstance(wanted, JsonSchemaFormat):
            yield Grammar.of("json_schema", wanted.json_schema.json_schema, param="response_format.json_schema.schema")
        elif isinstance(wanted, JsonObjectFormat):
            yield Grammar("json_object", param="response_format")
        if (outputs := self.structured_outputs) is not None:
            if outputs.json_object:
                yield Grammar("json_object", param="structured_outputs.json_object")
            yield from _vllm(outputs.json_schema, outputs.regex, outputs.choice, outputs.grammar, "structured_outputs.")
        yield from _vllm(self.guided_json, self.guided_regex, self.guided_choice, self.guided_grammar, "guided_")


def _vllm(
    schema: object, regex: str | None, choice: list[str] | None, grammar: str | None, prefix: str
) -> Iterator[Grammar]:
    if schema is not None:
        yield Grammar.of("json_schema", schema, param=f"{prefix}json")
    if regex is not None:
        yield Grammar.of("regex", regex, param=f"{prefix}regex")
    if choice is not None:
        yield Grammar.of("choice", choice, param=f"{prefix}choice")
    if grammar is not None:
        yield Grammar.of("lark", grammar, param=f"{prefix}grammar")
