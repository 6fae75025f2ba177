"""The fields of a request that control how its answer is drawn and sent.

The fields of sampling parameters are generated from the table in `ternvl/params.py`.
"""

from __future__ import annotations

from dataclasses import replace
from math import isinf
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, Field, PrivateAttr, WithJsonSchema, create_model, model_validator

from ternvl.params import MAX_TOKEN_LIST, PARAMETERS, Kind, Parameter, SamplingParams
from ternvl.server.schema.types import UNSUPPORTED, Integer, NonEmpty, Number, Schema, StringOrStrings, refuse


def _token_id(value: str) -> str:
    if not (value.isascii() and value.isdigit()) or str(int(value[:20])) != value:
        raise refuse("", "is not a token id: a decimal number without sign or leading zeros")
    return value


def _false_alone(value: bool) -> bool:
    if value:
        raise refuse("", "true is not supported", code=UNSUPPORTED)
    return value


TokenId = Annotated[Integer, Field(ge=0)]
TokenIds = Annotated[list[TokenId], Field(max_length=MAX_TOKEN_LIST, fail_fast=True)]


def _biases(low: float | None, high: float | None) -> dict[str, Any]:
    """Return the JSON Schema of biases by token id."""
    return {
        "type": "object",
        "maxProperties": MAX_TOKEN_LIST,
        "propertyNames": {"pattern": "^(0|[1-9][0-9]*)$"},
        "additionalProperties": {"type": "number", "minimum": low, "maximum": high},
    }


def _annotation(row: Parameter) -> Any:
    """Return the pydantic type of a sampling parameter's field."""
    low, high = (None if isinf(bound) else bound for bound in (row.low, row.high))
    match row.kind:
        case Kind.NUMBER:
            return Annotated[Number, Field(ge=low, le=high)]
        case Kind.INTEGER:
            return Annotated[Integer, Field(ge=low, le=high)]
        case Kind.TOKEN_IDS:
            return Annotated[TokenIds, Field(min_length=int(row.low))]
        case Kind.STRINGS:
            return StringOrStrings
        case Kind.BIASES:
            bias = Annotated[Number, Field(ge=low, le=high)]
            key = Annotated[str, AfterValidator(_token_id)]
            return Annotated[dict[key, bias], Field(max_length=MAX_TOKEN_LIST), WithJsonSchema(_biases(low, high))]
    assert row.kind is Kind.BOOLEAN, row
    return bool


_SHARED = {name: row for name, row in PARAMETERS.items() if row.is_shared}

if TYPE_CHECKING:
    SharedParameters = Schema
else:
    SharedParameters = create_model(
        "SharedParameters",
        __base__=Schema,
        **{name: (_annotation(row) | None, None) for name, row in _SHARED.items()},
    )


class StreamOptions(Schema):
    """`include_usage` adds a last chunk with the token counts, `continuous_usage_stats` those so far to every chunk.

    `include_obfuscation` may only be `false`, the default.
    """

    include_usage: bool | None = None
    include_obfuscation: Annotated[bool, AfterValidator(_false_alone)] | None = None
    continuous_usage_stats: bool | None = None


class TextRequest(SharedParameters):
    """The fields that all endpoints for generating text have in common."""

    limit_name: ClassVar[str] = "max_tokens"
    """The protocol's name for the limit of an answer's tokens."""

    _answer_headers: dict[str, str] = PrivateAttr(default_factory=dict)

    @property
    def answer_headers(self) -> dict[str, str]:
        """The headers of the answer, which may be added to until the answer begins."""
        return self._answer_headers

    model: str | None = None
    lora: NonEmpty | None = None
    stream: bool | None = None
    priority: Annotated[Integer, Field(ge=-(2**31), lt=2**31)] | None = None
    cache_salt: NonEmpty | None = None
    user: str | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None

    @property
    def unenforced(self) -> list[str]:
        """The paths of the request's rules for answers that no grammar can hold, beside those in its schemas."""
        return []

    @property
    def answer_limit(self) -> int | None:
        """The most tokens that an answer may have; None for as many as the context holds."""
        return None

    def to_params(self, defaults: SamplingParams) -> SamplingParams:
        """Return the sampling parameters: those of the request, and `defaults` for the others."""
        return replace(defaults, **{name: value for name, value in self._given().items() if value is not None})

    def _given(self) -> dict[str, Any]:
        """Return the values of the sampling parameters; None if the request has none."""
        return {name: self._value(name, row) for name, row in _SHARED.items()} | {"max_tokens": self.answer_limit}

    def _value(self, name: str, row: Parameter) -> Any:
        value = getattr(self, name)
        if row.kind is Kind.BIASES and value is not None:
            return {int(token_id): bias for token_id, bias in value.items()}
        return value

    @property
    def least_tokens(self) -> int:
        """The fewest tokens that an answer may have."""
        return getattr(self, "min_tokens") or 0  # noqa: B009  # the field comes from the table

    @model_validator(mode="after")
    def _limits_agree(self) -> Self:
        least, limit = self.least_tokens, self.answer_limit
        if limit is not None and least > limit:
            raise refuse("min_tokens", f"is {least}, more than the {limit} of {self.limit_name}")
        return self


class SamplingFields(TextRequest):
    """The further fields that Chat Completions and Completions have in common."""

    n: Annotated[Integer, Field(ge=1, le=128)] | None = None
    max_tokens: Annotated[Integer, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[Integer, Field(ge=1)] | None = None
    prompt_logprobs: Annotated[Integer, Field(ge=0, le=20)] | None = None
    stream_options: StreamOptions | None = None

    @property
    def answer_limit(self) -> int | None:
        """The smaller of `max_tokens` and `max_completion_tokens`; None if neither is given."""
        given = [limit for limit in (self.max_tokens, self.max_completion_tokens) if limit is not None]
        return min(given, default=None)

    @property
    def num_logprobs(self) -> int | None:
        """The number of alternatives listed for each token; None if log probabilities are not listed."""
        return None

    @property
    def num_prompt_logprobs(self) -> int | None:
        """`num_logprobs` for the tokens of the prompt."""
        return self.prompt_logprobs

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def repeats_usage(self) -> bool:
        """Whether each chunk of a stream has the token counts so far, as in vLLM."""
        return self.includes_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)

    def _given(self) -> dict[str, Any]:
        more = {"n": self.n or 1, "logprobs": self.num_logprobs, "prompt_logprobs": self.num_prompt_logprobs}
        return super()._given() | more

    @model_validator(mode="after")
    def _stream_fields_agree(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise refuse("stream_options", "is only allowed when stream is true")
        if self.prompt_logprobs is not None and self.stream:
            raise refuse("prompt_logprobs", "is not supported when stream is true", code=UNSUPPORTED)
        return self
