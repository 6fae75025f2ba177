"""`POST /v1/completions`: turns deltas into the chunks of a stream, and chunks into a whole answer."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ternvl.answer.choice import Delta
from ternvl.prompt.tokenizer import Tokenizer
from ternvl.server.answering import answer, new_id
from ternvl.server.endpoint import openai_form, read, send, serving_of
from ternvl.server.protocols import logprobs
from ternvl.server.protocols.completions_schema import CompletionRequest
from ternvl.server.serving import Serving

CompletionChunk = dict[str, Any]


@dataclass
class _ChoiceState:
    """The state of one answer to one of the prompts."""

    num_characters: int = 0
    """The number of characters before the next token that is listed."""
    echo: str = ""
    """The prompt, if it is still to be shown before the answer."""


@dataclass
class CompletionAnswer:
    """An answer that is being generated: the fields that all its chunks share, and the counts so far."""

    id: str
    model: str
    fingerprint: str
    tokenizer: Tokenizer
    num_prompt_tokens: int
    choices: list[_ChoiceState]
    with_logprobs: bool
    created: int = field(default_factory=lambda: int(time.time()))
    num_tokens: int = 0
    num_cached_tokens: int = 0

    def chunk(self, *choices: dict[str, Any]) -> CompletionChunk:
        """Return a `text_completion` with some choices."""
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": list(choices),
        }

    def to_chunk(self, delta: Delta) -> CompletionChunk | None:
        """Return the chunk of a delta; None if the delta has nothing to show."""
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

    def _logprobs(self, delta: Delta, choice: _ChoiceState) -> dict[str, list[Any]]:
        listed = logprobs.legacy(self.tokenizer, delta.logprobs, choice.num_characters)
        choice.num_characters += sum(map(len, listed["tokens"]))
        return listed

    @property
    def usage(self) -> dict[str, Any]:
        """The numbers of tokens of all prompts and of all answers so far."""
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": self.num_tokens,
            "total_tokens": self.num_prompt_tokens + self.num_tokens,
            "prompt_tokens_details": {"cached_tokens": self.num_cached_tokens, "image_tokens": 0},
        }


def _echo(tokenizer: Tokenizer, prompt: str | list[int]) -> str:
    return prompt if isinstance(prompt, str) else tokenizer.decode(prompt)


async def complete(serving: Serving, request: CompletionRequest) -> AsyncGenerator[CompletionChunk]:
    """Yield the chunks of the answer. The last chunk has the usage and no choices.

    Answer j to prompt i is choice `i * n + j`. Closing the generator aborts the requests that still run. Raises the
    errors of `ternvl.server.answering.answer`.
    """
    answer_id, tokenizer = new_id("cmpl"), serving.llm.tokenizer
    running = await answer(serving, request, request.to_asks, answer_id)
    echoes = [_echo(tokenizer, each) if request.echo else "" for each in request.prompts]
    chunks = CompletionAnswer(
        answer_id,
        running.model,
        serving.fingerprint,
        tokenizer,
        sum(prompt.num_tokens for prompt in running.prompts),
        [_ChoiceState(echo=echo) for echo in echoes for _ in range(running.params.n)],
        running.has_logprobs,
    )
    async with aclosing(running.deltas) as deltas:
        async for delta in deltas:
            chunk = chunks.to_chunk(delta)
            if chunk:
                yield chunk | {"usage": chunks.usage} if request.repeats_usage else chunk
    yield chunks.chunk() | {"usage": chunks.usage}


async def fold(chunks: AsyncIterable[CompletionChunk]) -> CompletionChunk:
    """Return the whole answer, which is the concatenation of the chunks."""
    answer: CompletionChunk = {}
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
    """Answer `POST /v1/completions`."""
    wanted, headers = await read(request, CompletionRequest, "completions")
    form = openai_form(include_usage=wanted.includes_usage) if wanted.stream else None
    return await send(request, complete(serving_of(request), wanted), fold=fold, form=form, headers=headers)
