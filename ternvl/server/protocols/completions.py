"""`POST /v1/completions`: plain prompts, gone on with as they are."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Self

from pydantic import Discriminator, Field, Tag, model_validator
from starlette.requests import Request
from starlette.responses import Response

from ternvl.answer.ask import new_id, to_params, to_requests
from ternvl.answer.choice import Delta, generate
from ternvl.errors import RequestError
from ternvl.lora.bank import Adapter
from ternvl.prompt.tokenizer import Tokenizer
from ternvl.server.endpoint import openai_form, read, send, serving_of
from ternvl.server.foreign import Foreign
from ternvl.server.protocols import logprobs
from ternvl.server.schema.fields import served_values_without
from ternvl.server.schema.sampling import SamplingFields, TokenId
from ternvl.server.schema.types import REFUSED, Integer, refuse
from ternvl.server.serving import Serving
from ternvl.types import Prompt

Chunk = dict[str, Any]

DEFAULT_MAX_TOKENS = 16
"""OpenAI's, of this endpoint alone."""

COMPLETION_VALUES = served_values_without("echo", "best_of", suffix=("",), prompt_embeds=())

_MAX_PROMPTS = 128
_NAMES = Foreign({}, (), ((r"messages", "prompt"),))


def _kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "@text"
    if not isinstance(value, list):
        return None
    first = value[0] if value else None
    return "@texts" if isinstance(first, str) else "@prompts" if isinstance(first, list) else "@ids"


TokenPrompt = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
PromptField = Annotated[
    Annotated[str, Tag("@text")]
    | Annotated[list[str], Field(max_length=_MAX_PROMPTS, fail_fast=True), Tag("@texts")]
    | Annotated[TokenPrompt, Tag("@ids")]
    | Annotated[list[TokenPrompt], Field(max_length=_MAX_PROMPTS, fail_fast=True), Tag("@prompts")],
    Discriminator(_kind, custom_error_type=REFUSED, custom_error_message="must be a string or an array"),
]


class CompletionRequest(SamplingFields):
    """The body of `POST /v1/completions`."""

    prompt: PromptField
    echo: bool | None = None
    best_of: Integer | None = None
    logprobs: Annotated[Integer, Field(ge=0, le=20)] | None = None

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def answer_limit(self) -> int:
        """Tokens an answer may have."""
        return super().answer_limit or max(DEFAULT_MAX_TOKENS, self.min_tokens or 0)

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        """One or more prompts."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt

    @model_validator(mode="after")
    def _completion_fields_agree(self) -> Self:
        if self.best_of is not None and self.best_of != self.num_answers:
            raise refuse("best_of", f"is {self.best_of}; only the {self.num_answers} of n is supported")
        if self.echo and self.logprobs is not None:
            raise refuse("echo", "together with logprobs is not supported", code="unsupported_parameter")
        return self


@dataclass
class _Choice:
    """One answer to one of the prompts, as far as it has come."""

    num_characters: int = 0
    """Of the text before the next listed token."""
    echo: str = ""
    """What is shown before the answer, until it is."""


@dataclass
class _Completion:
    """One answer under way: what its chunks have in common, and what was counted so far."""

    id: str
    model: str
    fingerprint: str
    tokenizer: Tokenizer
    num_prompt_tokens: int
    choices: list[_Choice]
    with_logprobs: bool
    created: int = field(default_factory=lambda: int(time.time()))
    num_tokens: int = 0
    num_cached_tokens: int = 0

    def chunk(self, *choices: dict[str, Any]) -> Chunk:
        """A `text_completion`."""
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": list(choices),
        }

    def to_chunk(self, delta: Delta) -> Chunk | None:
        """None where the delta shows nothing."""
        self.num_tokens += delta.num_tokens
        self.num_cached_tokens = max(self.num_cached_tokens, delta.num_cached_tokens)
        choice = self.choices[delta.index]
        text, choice.echo = choice.echo + delta.text, ""
        if not (text or delta.logprobs or delta.finish_reason):
            return None
        listed = self._logprobs(delta, choice) if self.with_logprobs else None
        return self.chunk(
            {"index": delta.index, "text": text, "logprobs": listed, "finish_reason": delta.finish_reason}
        )

    def _logprobs(self, delta: Delta, choice: _Choice) -> dict[str, list[Any]]:
        listed = logprobs.legacy(self.tokenizer, delta.logprobs, choice.num_characters)
        choice.num_characters += sum(map(len, listed["tokens"]))
        return listed

    @property
    def usage(self) -> dict[str, Any]:
        """Tokens of all prompts and, so far, of all answers."""
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": self.num_tokens,
            "total_tokens": self.num_prompt_tokens + self.num_tokens,
            "prompt_tokens_details": {"cached_tokens": self.num_cached_tokens, "image_tokens": 0},
        }


def _encode(tokenizer: Tokenizer, prompts: Sequence[str | list[int]]) -> list[Prompt]:
    encoded = [tokenizer.encode_text(each) if isinstance(each, str) else each for each in prompts]
    if not all(encoded):
        raise RequestError("The prompt is empty, but the model needs at least one token.", param="prompt")
    return [Prompt(tuple(token_ids)) for token_ids in encoded]


def _echo(tokenizer: Tokenizer, prompt: str | list[int]) -> str:
    return prompt if isinstance(prompt, str) else tokenizer.decode(prompt)


async def complete(serving: Serving, request: CompletionRequest) -> AsyncGenerator[Chunk]:
    """Chunks of the answer; the last one has no choices and the usage. Closing it aborts what still runs.

    Answer j to prompt i is choice `i * n + j`. Raises the errors of `ternvl.errors`, and HTTPError for a model that is
    not served.
    """
    choice, tokenizer, n = serving.choose(request.model, request.lora), serving.llm.tokenizer, request.num_answers
    meter, deadline = serving.metrics.meter(), serving.deadline()
    params = to_params(request, serving.llm)
    serving.check_cost(len(request.prompts) * n, params.max_tokens)
    encoding = partial(_encode, tokenizer, request.prompts)
    prompts = await serving.build_prompt(encoding, has_images=False, deadline=deadline)
    answer_id = new_id("cmpl")
    echoes = [_echo(tokenizer, each) if request.echo else "" for each in request.prompts]
    choices = [_Choice(echo=echo) for echo in echoes for _ in range(n)]
    num_prompt_tokens = sum(prompt.num_tokens for prompt in prompts)
    completion = _Completion(
        answer_id, choice.name, serving.fingerprint, tokenizer, num_prompt_tokens, choices, params.logprobs is not None
    )

    def begin(adapter: Adapter | None) -> AsyncGenerator[Delta]:
        requests = [
            each
            for index, prompt in enumerate(prompts)
            for each in to_requests(f"{answer_id}-{index}", prompt, params, request, adapter)
        ]
        return generate(serving.service, requests, tokenizer, deadline=deadline)

    deltas = serving.adapters.answer(choice.adapter, begin)
    async with aclosing(meter.watch(deltas, num_prompt_tokens)) as watched:
        async for delta in watched:
            chunk = completion.to_chunk(delta)
            if chunk:
                yield chunk
    yield completion.chunk() | {"usage": completion.usage}


async def fold(chunks: AsyncIterable[Chunk]) -> Chunk:
    """The answer that is not streamed: the concatenation of the chunks."""
    answer: Chunk = {}
    choices: dict[int, dict[str, Any]] = {}
    async for chunk in chunks:
        answer |= chunk
        for piece in chunk["choices"]:
            before = choices.setdefault(piece["index"], {**piece, "text": "", "logprobs": None})
            before["text"] += piece["text"]
            before["logprobs"] = _joined(before["logprobs"], piece["logprobs"])
            before["finish_reason"] = piece["finish_reason"]
    return answer | {"choices": [choices[index] for index in sorted(choices)]}


def _joined(before: dict[str, list[Any]] | None, more: dict[str, list[Any]] | None) -> dict[str, list[Any]] | None:
    if before is None or more is None:
        return before or more
    return {name: before[name] + more[name] for name in before}


async def completions(request: Request) -> Response:
    """`POST /v1/completions`."""
    wanted, headers = await read(request, CompletionRequest, COMPLETION_VALUES)
    chunks = _NAMES.worded(complete(serving_of(request), wanted))
    form = openai_form(include_usage=wanted.includes_usage) if wanted.stream else None
    return await send(request, chunks, fold=fold, form=form, headers=headers)
