"""`POST /v1/completions`: turns deltas into the chunks of a stream, and chunks into a whole answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ternvl.answer.delta import Delta
from ternvl.output.detokenizer import Detokenizer
from ternvl.prompt.tokenizer import Tokenizer
from ternvl.server.answering import answer, new_id
from ternvl.server.endpoint import openai_form, read, send, serving_of
from ternvl.server.protocols.completions_schema import CompletionRequest
from ternvl.server.protocols.logprobs import TokenLister, of_prompt
from ternvl.server.serving import Serving
from ternvl.types import Prompt, PromptLogprobs

CompletionChunk = dict[str, Any]
Listed = dict[str, list[Any]]


@dataclass
class _PromptState:
    """What is shown of one of the prompts, in the first chunk of each of its answers."""

    request: CompletionRequest
    prompt: Prompt
    tokenizer: Tokenizer
    new_list: Callable[[int], TokenLister]
    """Returns what lists the tokens of a text that begins after so many characters."""
    echo: str
    """The text of the prompt if it stands before the answer, else an empty text."""
    listed: Listed | None = None
    """The log probabilities of its tokens, if they stand before those of the answer."""
    fields: dict[str, Any] = field(default_factory=dict)
    """Further fields of a choice."""

    def take(self, values: PromptLogprobs) -> None:
        """Take the log probabilities of the prompt. This takes a while if the prompt is long."""
        if self.request.echo and self.request.logprobs is not None:
            self.listed = self.new_list(0).write(zip(self.prompt.token_ids, values, strict=True))
        if (num_top := self.request.prompt_logprobs) is not None:
            self.fields = {"prompt_logprobs": of_prompt(self.tokenizer, self.prompt, values, num_top)}


class _ChoiceState:
    """The state of one answer to one of the prompts."""

    def __init__(self, prompt: _PromptState) -> None:
        self.prompt: _PromptState | None = prompt
        """Until it is shown."""
        self.list = prompt.new_list(len(prompt.echo))


@dataclass
class CompletionAnswer:
    """An answer that is being generated: the fields that all its chunks share, and the counts so far."""

    id: str
    model: str
    fingerprint: str
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
        listed = choice.list.write(delta.all_logprobs) if self.with_logprobs else None
        shown: dict[str, Any] = {
            "index": delta.index, "text": delta.text, "logprobs": listed, "finish_reason": delta.finish_reason
        }  # fmt: skip
        if choice.prompt is not None:
            shown = _with_prompt(shown, choice.prompt)
            choice.prompt = None
        has_news = shown["text"] or shown["finish_reason"] or "prompt_logprobs" in shown
        return self.chunk(shown) if has_news or (shown["logprobs"] and shown["logprobs"]["tokens"]) else None

    @property
    def usage(self) -> dict[str, Any]:
        """The numbers of tokens of all prompts and of all answers so far."""
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": self.num_tokens,
            "total_tokens": self.num_prompt_tokens + self.num_tokens,
            "prompt_tokens_details": {"cached_tokens": self.num_cached_tokens, "image_tokens": 0},
        }


def _with_prompt(shown: dict[str, Any], prompt: _PromptState) -> dict[str, Any]:
    """Return the first piece of a choice with what is shown of the prompt."""
    listed = shown["logprobs"]
    if prompt.listed is not None and listed is not None:
        listed = {name: values + listed[name] for name, values in prompt.listed.items()}
    return {**shown, "text": prompt.echo + shown["text"], "logprobs": listed, **prompt.fields}


def _text(prompt: str | list[int], detokenizer: Detokenizer) -> str:
    return prompt if isinstance(prompt, str) else detokenizer.decode(prompt) + detokenizer.flush()


async def complete(serving: Serving, request: CompletionRequest) -> AsyncGenerator[CompletionChunk]:
    """Yield the chunks of the answer. The last chunk has the usage and no choices.

    Answer j to prompt i is choice `i * n + j`. Closing the generator aborts the requests that still run. Raises the
    errors of `ternvl.server.answering.answer`.
    """
    answer_id, tokenizer = new_id("cmpl"), serving.llm.tokenizer
    running = await answer(serving, request, request.to_asks, answer_id)
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=running.params.skip_special_tokens)
    new_list = partial(TokenLister, tokenizer, request.logprobs or 0, detokenizer.hidden_ids)
    echoes = [_text(each, detokenizer) if request.echo else "" for each in request.prompts]
    prompts = [
        _PromptState(request, prompt, tokenizer, new_list, echo)
        for prompt, echo in zip(running.prompts, echoes, strict=True)
    ]
    chunks = CompletionAnswer(
        answer_id,
        running.model,
        serving.fingerprint,
        sum(prompt.num_tokens for prompt in running.prompts),
        [_ChoiceState(prompt) for prompt in prompts for _ in range(running.params.n)],
        running.has_logprobs,
    )
    async with aclosing(running.deltas) as deltas:
        async for delta in deltas:
            if delta.prompt_logprobs:
                await asyncio.to_thread(prompts[delta.index // running.params.n].take, delta.prompt_logprobs)
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
            _extend(before, piece["logprobs"])
            before["finish_reason"] = piece["finish_reason"]
    return answer | {"choices": [choices[index] for index in sorted(choices)]}


def _extend(choice: dict[str, Any], more: Listed | None) -> None:
    """Add lists to those of a choice."""
    if choice["logprobs"] is None:
        choice["logprobs"] = more
    elif more is not None:
        for name, values in more.items():
            choice["logprobs"][name] += values


async def completions(request: Request) -> Response:
    """Answer `POST /v1/completions`."""
    wanted, headers = await read(request, CompletionRequest, "completions", generates=True)
    form = openai_form(include_usage=wanted.includes_usage) if wanted.stream else None
    return await send(request, complete(serving_of(request), wanted), fold=fold, form=form, headers=headers)
