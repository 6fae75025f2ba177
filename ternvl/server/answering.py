"""From a request to the deltas of its answer: what every endpoint that generates text does, whatever its protocol."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial

from ternvl.answer.ask import Ask, PreparedAsk
from ternvl.answer.choice import Choices, Delta, generate
from ternvl.engine.request import check_params
from ternvl.errors import RequestError
from ternvl.params import SamplingParams
from ternvl.server.schema.sampling import TextRequest
from ternvl.server.serving import Serving
from ternvl.types import Prompt


@dataclass(frozen=True)
class InFlightAnswer:
    """An answer that is being generated: what every protocol makes its own answer from."""

    model: str
    """The name of the model that answers."""
    prompts: Sequence[Prompt]
    params: SamplingParams
    deltas: AsyncGenerator[Delta]
    """Of all choices. Choice j of prompt i has the index `i * params.n + j`. Closing it aborts what still runs."""

    @property
    def has_logprobs(self) -> bool:
        """Whether log probabilities were asked for."""
        return self.params.logprobs is not None


def new_id(kind: str, separator: str = "-") -> str:
    """Return an id that no other answer has."""
    return f"{kind}{separator}{secrets.token_hex(12)}"


async def answer(
    serving: Serving,
    request: TextRequest,
    to_asks: Callable[[SamplingParams], Sequence[Ask]],
    answer_id: str,
) -> InFlightAnswer:
    """Begin to answer a request, whose engine requests are named after `answer_id`.

    `to_asks` makes its asks, which have the same parameters, from the checkpoint's sampling defaults. Raises the errors
    of `ternvl.errors`, and HTTPError for a model that is not served. So does drawing the deltas.
    """
    chosen = serving.names.choose(request.model, request.lora)
    meter, deadline = serving.metrics.meter(), serving.deadline()
    asks = await serving.threads.run(partial(to_asks, serving.llm.default_params()), deadline=deadline)
    _check(serving, request, asks)
    ready = [await serving.threads.prepare(replace(ask, adapter=chosen.adapter), deadline=deadline) for ask in asks]
    prompts = [each.prompt for each in ready]
    deltas = meter.watch(_deltas(serving, ready, answer_id, deadline), sum(prompt.num_tokens for prompt in prompts))
    return InFlightAnswer(chosen.name, prompts, ready[0].params, deltas)


def _check(serving: Serving, request: TextRequest, asks: Sequence[Ask]) -> None:
    """Raise what can be known before prompts are built: RequestError for parameters that the model cannot take or more
    answer tokens than a request may have, and what `Service.check_room` raises."""
    llm, params = serving.llm, asks[0].params
    check_params(params, llm.config.language.vocab_size, llm.tokenizer.stop_ids)
    longest, budget = llm.engine.config.max_model_len, serving.config.max_answer_tokens
    each, num_answers = min(params.max_tokens or longest, longest), len(asks) * params.n
    if num_answers * each > budget:
        name = "n" if "n" in type(request).model_fields else request.limit_name
        message = (
            f"{name} asks for {num_answers * each} tokens of answers ({num_answers} times {each}), but one request may "
            f"have {budget}."
        )
        raise RequestError(message, param=name, code="too_many_answer_tokens")
    serving.service.check_room(num_answers)


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
