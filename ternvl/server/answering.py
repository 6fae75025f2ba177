"""Answers a request with deltas: the part that all endpoints that generate text share."""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from ternvl.answer import checks
from ternvl.answer.ask import Ask, PreparedAsk
from ternvl.answer.choice import Choices, generate
from ternvl.answer.delta import Delta
from ternvl.engine.request import check_params, check_prompt
from ternvl.errors import RequestError
from ternvl.output.tool_calls import ToolCallDelta
from ternvl.params import SamplingParams
from ternvl.server.guard.caller import current
from ternvl.server.guard.rate import charged
from ternvl.server.log.request_id import in_words
from ternvl.server.metrics.meter import Meter
from ternvl.server.schema.fields import ignored_header
from ternvl.server.schema.sampling import TextRequest
from ternvl.server.serving import Serving
from ternvl.server.tracing.attributes import note_answer
from ternvl.types import Prompt

logger = logging.getLogger("ternvl.server")

UNENFORCED_SCHEMA = "x-ternvl-unenforced-schema"
BROKEN_SCHEMA = "x-ternvl-broken-schema"
UNCHECKED_SCHEMA = "x-ternvl-unchecked-schema"


@dataclass(frozen=True)
class InFlightAnswer:
    """An answer that is being generated, in a form that is independent of the protocol."""

    model: str
    """The name of the model that answers."""
    prompts: Sequence[Prompt]
    params: SamplingParams
    deltas: AsyncGenerator[Delta]
    """The deltas of all choices; choice j of prompt i has the index `i * params.n + j`. Closing the generator aborts
    the requests that still run."""

    @property
    def has_logprobs(self) -> bool:
        """Whether the request asks for log probabilities."""
        return self.params.logprobs is not None


def new_id(kind: str, separator: str = "-") -> str:
    """Return a new, random id for an answer or one of its parts, such as "chatcmpl-4f..."."""
    return f"{kind}{separator}{secrets.token_hex(12)}"


async def answer(
    serving: Serving,
    request: TextRequest,
    to_asks: Callable[[SamplingParams], Sequence[Ask]],
    answer_id: str,
) -> InFlightAnswer:
    """Begin to answer a request. The ids of its engine requests begin with `answer_id`.

    `to_asks` returns the asks of the request, given the checkpoint's sampling defaults; all asks have the same
    parameters. Raises HTTPError for a model that is not served, and the errors of `ternvl.errors`, which the deltas
    raise, too.
    """
    chosen = serving.names.choose(request.model, request.lora)
    meter, deadline = Meter(serving.metrics, chosen.name), serving.deadline()
    asks = await serving.threads.run(partial(to_asks, serving.llm.default_params()), deadline=deadline)
    most = _check(serving, request, asks)
    own = [isolated(serving, replace(ask, adapter=chosen.adapter)) for ask in asks]
    ready = [await serving.threads.prepare(ask, deadline=deadline) for ask in own]
    _check_listed(ready, serving.config.max_answer_tokens)
    _name_unenforced(request, [*ready[0].unenforced, *request.unenforced])
    prompts = [each.prompt for each in ready]
    note_answer(answer_id, ready[0].params, prompts, chosen.adapter)
    num_prompt_tokens = sum(prompt.num_tokens for prompt in prompts)
    generated = _naming_broken(request, _deltas(serving, ready, answer_id, deadline))
    deltas = meter.watch(charged(generated, num_prompt_tokens, most), prompts, ready[0].params.n)
    return InFlightAnswer(chosen.name, prompts, ready[0].params, deltas)


def isolated(serving: Serving, ask: Ask) -> Ask:
    """Return an ask that shares cached work only with asks of the same key, unless all keys are to share it."""
    caller = current.get()
    if caller is None or serving.config.share_cache:
        return ask
    return replace(ask, cache_salt=caller.key.salt + ask.cache_salt)


class PromptRequest(Protocol):
    """A request for the prompt of a conversation, such as one for the number of its tokens."""

    @property
    def model(self) -> str | None:
        """The name of a served model, or none."""

    def to_ask(self, defaults: SamplingParams) -> Ask:
        """Return the ask whose prompt is wanted, given the checkpoint's sampling defaults."""


async def prompt_of(serving: Serving, request: PromptRequest) -> Prompt:
    """Return the prompt of a request that asks for no answer. Raises what `answer` raises before it begins."""
    serving.names.resolve(request.model)
    deadline = serving.deadline()
    ask = await serving.threads.run(partial(request.to_ask, serving.llm.default_params()), deadline=deadline)
    return await serving.threads.build_prompt(ask, deadline=deadline)


async def rendered(
    serving: Serving, request: TextRequest, to_asks: Callable[[SamplingParams], Sequence[Ask]]
) -> tuple[list[Ask], str]:
    """Return the asks of a request, with prompts as input, and the name of the model or adapter that would answer.

    Raises what `answer` raises before it begins, but for its limits on answers.
    """
    chosen = serving.names.choose(request.model, request.lora)
    deadline, limit = serving.deadline(), serving.llm.engine.config.max_model_len
    asks = await serving.threads.run(partial(to_asks, serving.llm.default_params()), deadline=deadline)
    ready = []
    for each in asks:
        ask = isolated(serving, replace(each, adapter=chosen.adapter))
        prompt = await serving.threads.build_prompt(ask, max_tokens=limit, deadline=deadline)
        check_prompt(prompt, serving.llm.config, limit, path=ask.path)
        ready.append(replace(ask, input=prompt))
    return ready, chosen.name


def _name_unenforced(request: TextRequest, paths: list[str]) -> None:
    """Name the rules of schemas that are not enforced in a header of the answer and in the log."""
    if paths:
        request.answer_headers[UNENFORCED_SCHEMA] = ignored_header(paths)
        shown = request.answer_headers[UNENFORCED_SCHEMA]
        logger.warning("Rules of a request's schemas are not enforced: %s%s", shown, in_words())


async def _naming_broken(request: TextRequest, deltas: AsyncGenerator[Delta]) -> AsyncGenerator[Delta]:
    """Yield deltas, and name the rules of schemas that their calls break in headers of the answer and in the log.

    The headers of a stream are sent before, so a stream has them in the log alone.
    """
    broken, unchecked = list[str](), dict[str, None]()
    async with aclosing(deltas):
        async for delta in deltas:
            if delta.broken_rules or delta.unchecked_rules:
                logger.warning(checks.in_words(delta.broken_rules, delta.unchecked_rules).rstrip() + in_words())
                broken += map(str, delta.broken_rules)
                unchecked |= dict.fromkeys(delta.unchecked_rules)
                named = {BROKEN_SCHEMA: broken, UNCHECKED_SCHEMA: list(unchecked)}
                request.answer_headers.update({name: ignored_header(each) for name, each in named.items() if each})
            yield delta


def _check(serving: Serving, request: TextRequest, asks: Sequence[Ask]) -> int:
    """Do the checks that need no prompts, and return the most tokens that all answers together may have.

    Raises RequestError for parameters that the model does not support and for more answer tokens than a request may
    have, HTTPError 429 if the key has no tokens left, and the errors of `Service.check_room`.
    """
    llm, params = serving.llm, asks[0].params
    check_params(params, llm.config.language.vocab_size, llm.tokenizer.stop_ids)
    longest, budget = llm.engine.config.max_model_len, serving.config.max_answer_tokens
    each = longest if params.max_tokens is None else min(params.max_tokens, longest)
    num_answers = len(asks) * params.n
    if num_answers * each > budget:
        name = "n" if "n" in type(request).model_fields else request.limit_name
        message = (
            f"{name} asks for {num_answers * each} tokens of answers ({num_answers} times {each}), but one request may "
            f"have {budget}."
        )
        raise RequestError(message, param=name, code="too_many_answer_tokens")
    if caller := current.get():
        caller.check_tokens(1)
    serving.service.check_room(num_answers, has_images=any(ask.has_media for ask in asks))
    return num_answers * each


def _check_listed(ready: Sequence[PreparedAsk], budget: int) -> None:
    """Raise RequestError if the answers list more tokens of prompts than they may have tokens of their own."""
    listed = sum(ask.prompt.num_tokens * ask.params.n for ask in ready if ask.params.prompt_logprobs is not None)
    if listed > budget:
        message = (
            f"The answers would list the log probabilities of {listed} tokens of prompts, but one request may have "
            f"{budget}."
        )
        raise RequestError(message, param=ready[0].ask.path, code="too_many_answer_tokens")


async def _deltas(
    serving: Serving, ready: Sequence[PreparedAsk], answer_id: str, deadline: float | None
) -> AsyncGenerator[Delta]:
    async with serving.adapters.lease(ready[0].ask.adapter) as adapter:
        names = [answer_id] if len(ready) == 1 else [f"{answer_id}-{index}" for index in range(len(ready))]
        groups = [(ask, ask.requests(name, adapter)) for ask, name in zip(ready, names, strict=True)]
        choices = Choices.of(groups, serving.llm.tokenizer, serving.service.abort)
        requests = [request for _, group in groups for request in group]
        async with aclosing(generate(serving.service, requests, choices, deadline=deadline)) as deltas:
            async for delta in deltas:
                yield delta


def split_calls(delta: Delta) -> tuple[Sequence[ToolCallDelta], Sequence[ToolCallDelta]]:
    """Return the pieces of a delta's calls that continue an earlier delta's call, and the others.

    In a delta of several tokens, the former come before the text, and the text before the latter.
    """
    begun = next((index for index, call in enumerate(delta.tool_calls) if call.name is not None), len(delta.tool_calls))
    return delta.tool_calls[:begun], delta.tool_calls[begun:]
