"""The request schema of `POST /v1/completions`, whose prompts are continued as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Self

from pydantic import Discriminator, Field, Tag, WithJsonSchema, model_validator

from ternvl.answer.ask import Ask
from ternvl.params import SamplingParams
from ternvl.server.schema.forms import FormFields
from ternvl.server.schema.sampling import SamplingFields, TokenId
from ternvl.server.schema.types import REFUSED, Integer, refuse

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for `max_tokens`, which only this endpoint has."""

_MAX_PROMPTS = 128


def _kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "@text"
    if not isinstance(value, list):
        return None
    first = value[0] if value else None
    return "@texts" if isinstance(first, str) else "@prompts" if isinstance(first, list) else "@ids"


_TEXT = {"type": "string", "minLength": 1}  # an empty prompt has no tokens; the prompt's builder refuses it
TokenPrompt = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
PromptField = Annotated[
    Annotated[str, WithJsonSchema(_TEXT), Tag("@text")]
    | Annotated[
        list[Annotated[str, WithJsonSchema(_TEXT)]],
        Field(min_length=1, max_length=_MAX_PROMPTS, fail_fast=True),
        Tag("@texts"),
    ]
    | Annotated[TokenPrompt, Tag("@ids")]
    | Annotated[list[TokenPrompt], Field(min_length=1, max_length=_MAX_PROMPTS, fail_fast=True), Tag("@prompts")],
    Discriminator(_kind, custom_error_type=REFUSED, custom_error_message="must be a string or an array"),
]


class CompletionRequest(SamplingFields, FormFields):
    """The body of `POST /v1/completions`."""

    prompt: PromptField
    echo: bool | None = None
    max_tokens: Annotated[Integer, Field(ge=0)] | None = None
    best_of: Integer | None = None
    logprobs: Annotated[Integer, Field(ge=0, le=20)] | None = None

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def answer_limit(self) -> int:
        """The most tokens that an answer may have, 16 by default."""
        given = super().answer_limit
        return max(DEFAULT_MAX_TOKENS, self.least_tokens) if given is None else given

    @property
    def num_prompt_logprobs(self) -> int | None:
        """The most that `prompt_logprobs` and `echo` ask for. A prompt that has no answer is always scored."""
        echoed = 0 if self.logprobs is None and self.max_tokens == 0 else self.logprobs
        asked = (self.prompt_logprobs, echoed if self.echo else None)
        return max((number for number in asked if number is not None), default=None)

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        """The prompts as a list, each a text or token ids."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt

    def to_asks(self, defaults: SamplingParams) -> list[Ask]:
        """Return an ask for each prompt."""
        params = replace(self.to_params(defaults), grammar=self.to_grammar())
        priority, salt = self.priority or 0, self.cache_salt or ""
        return [
            Ask(input=prompt, params=params, priority=priority, cache_salt=salt, splits_reasoning=False, path="prompt")
            for prompt in self.prompts
        ]

    @model_validator(mode="after")
    def _completion_fields_agree(self) -> Self:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise refuse("best_of", f"is {self.best_of}; only the {self.n or 1} of n is supported")
        if self.max_tokens == 0 and not self.echo and self.prompt_logprobs is None:
            raise refuse("max_tokens", "is 0, which is only allowed together with echo or prompt_logprobs")
        return self
