"""The fields of a request that say how its answer is drawn and sent, whatever the prompt is made of."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from ternvl.params import MAX_BIAS, MAX_TOKEN_LIST
from ternvl.server.schema.types import Integer, NonEmpty, Number, Schema, StringOrStrings, refuse


def _token_id(value: str) -> str:
    if not (value.isascii() and value.isdigit()) or str(int(value[:20])) != value:
        raise refuse("", "is no token id: a decimal number without sign or leading zeros")
    return value


def _asks_for_nothing(value: bool) -> bool:
    if value:
        raise refuse("", "true is not supported", code="unsupported_parameter")
    return value


TokenId = Annotated[Integer, Field(ge=0)]
TokenIds = Annotated[list[TokenId], Field(max_length=MAX_TOKEN_LIST, fail_fast=True)]
Bias = Annotated[Number, Field(ge=-MAX_BIAS, le=MAX_BIAS)]


class StreamOptions(Schema):
    """`include_usage` adds a last chunk with the token counts. Of the others, `false` is what happens anyway."""

    include_usage: bool | None = None
    include_obfuscation: Annotated[bool, AfterValidator(_asks_for_nothing)] | None = None
    continuous_usage_stats: Annotated[bool, AfterValidator(_asks_for_nothing)] | None = None


class DrawingFields(Schema):
    """What the requests of all endpoints that answer have in common."""

    model: str | None = None
    lora: NonEmpty | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    top_k: Annotated[Integer, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[Number, Field(ge=0.01, le=2)] | None = None
    logit_bias: (
        Annotated[dict[Annotated[str, AfterValidator(_token_id)], Bias], Field(max_length=MAX_TOKEN_LIST)] | None
    ) = None
    allowed_token_ids: Annotated[TokenIds, Field(min_length=1)] | None = None
    seed: Annotated[Integer, Field(ge=-(2**63), lt=2**63)] | None = None
    min_tokens: Annotated[Integer, Field(ge=0)] | None = None
    stop: StringOrStrings = None
    stop_token_ids: TokenIds | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    stream: bool | None = None
    priority: Annotated[Integer, Field(ge=-(2**31), lt=2**31)] | None = None
    cache_salt: NonEmpty | None = None
    user: str | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None


class SamplingFields(DrawingFields):
    """Those of Chat Completions and completions."""

    n: Annotated[Integer, Field(ge=1, le=128)] | None = None
    max_tokens: Annotated[Integer, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[Integer, Field(ge=1)] | None = None
    stream_options: StreamOptions | None = None

    @property
    def num_answers(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    @property
    def answer_limit(self) -> int | None:
        """The smaller of `max_tokens` and `max_completion_tokens`; None where neither is given."""
        given = [limit for limit in (self.max_tokens, self.max_completion_tokens) if limit is not None]
        return min(given, default=None)

    @property
    def num_logprobs(self) -> int | None:
        """How many of the likeliest tokens are listed beside each; None where none is listed."""
        return None

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise refuse("stream_options", "is only allowed when stream is true")
        if self.min_tokens is not None and self.answer_limit is not None and self.min_tokens > self.answer_limit:
            raise refuse("min_tokens", f"is {self.min_tokens}, more than the {self.answer_limit} of max_tokens")
        return self
