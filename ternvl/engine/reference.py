"""The slowest correct computation: `InternVL.forward` computes each token from all tokens before it.

It uses no cache, no batches and no chunks. The engine must give the same tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor

from ternvl.config import EngineConfig
from ternvl.engine.admission.backlog import Backlog
from ternvl.engine.draw import failure
from ternvl.engine.request import Request, check_params, check_prompt
from ternvl.engine.score import score_prompt
from ternvl.engine.settings import check_config
from ternvl.engine.stats import EngineStats
from ternvl.errors import OverloadedError
from ternvl.lora.adapter import Adapter
from ternvl.lora.bank import attach
from ternvl.model.internvl import InternVL
from ternvl.sampling.grammar import Matcher, fill_masks
from ternvl.sampling.sampler import Draw, derive_seed, sample
from ternvl.types import FinishReason, TokenOutput


def generate(
    model: InternVL,
    request: Request,
    *,
    stop_ids: Sequence[int],
    max_model_len: int,
    default_seed: int = 0,
    matcher: Matcher | None = None,
) -> Iterator[TokenOutput]:
    """Yield the answer to a request token by token, as the engine does.

    `default_seed` is used if the request has no seed. `matcher` follows the request's grammar.
    """
    num_top = request.params.prompt_logprobs
    outputs = _answer(model, request, frozenset(stop_ids), max_model_len, default_seed, matcher)
    if num_top is not None and request.sibling_of is None:
        scores = score_prompt(_logits(model, request, []), request.prompt, num_top)
        yield replace(next(outputs), prompt_logprobs=scores)
    yield from outputs


def _answer(
    model: InternVL,
    request: Request,
    stop_ids: frozenset[int],
    max_model_len: int,
    default_seed: int,
    matcher: Matcher | None,
) -> Iterator[TokenOutput]:
    prompt, params = request.prompt, request.params
    seed = default_seed if params.seed is None else params.seed
    ignores_eos = params.ignore_eos and matcher is None
    stops = frozenset(params.stop_token_ids) | (frozenset() if ignores_eos else stop_ids)
    limit = max_model_len if params.max_tokens is None else params.max_tokens
    room = min(limit, max(1, max_model_len - prompt.num_tokens))
    if room == 0:
        yield TokenOutput(request.id, (), FinishReason.LENGTH)
    output_ids: list[int] = []
    while len(output_ids) < room:
        logits = _logits(model, request, output_ids)
        allowed = fill_masks([matcher], model.config.language.vocab_size)[0] if matcher else None
        drawn = sample(logits[-1:], [Draw(params, seed, prompt.token_ids, output_ids, stops, allowed)])[0]
        if drawn.token_id in stops:
            stop = None if drawn.logprobs is None else (drawn.token_id, drawn.logprobs)
            yield TokenOutput(request.id, (), FinishReason.STOP, stop=stop)
            return
        output_ids.append(drawn.token_id)
        reason = FinishReason.LENGTH if len(output_ids) == room else None
        if matcher is not None and matcher.accept(drawn.token_id):
            reason = FinishReason.STOP
        yield TokenOutput(request.id, (drawn.token_id,), reason, (drawn.logprobs,) if drawn.logprobs else ())
        if reason:
            return


def _logits(model: InternVL, request: Request, output_ids: list[int]) -> Tensor:
    """Return the logits [T, V] of the prompt and the tokens after it, in one run of the model."""
    prompt = request.prompt
    with _adapted(model, request.adapter):
        return model.forward(replace(prompt, token_ids=(*prompt.token_ids, *output_ids)))


@contextmanager
def _adapted(model: InternVL, adapter: Adapter | None) -> Iterator[None]:
    """Return a context in which the model computes with an adapter."""
    if adapter is None:
        yield
        return
    bank = attach(model)
    bank.install(adapter)
    try:
        with bank.active([(adapter, 0, 1)], 1):
            yield
    finally:
        bank.release(adapter)


class ReferenceEngine:
    """Has the interface of `Engine`, but answers one request after another with `generate`, one token per step."""

    def __init__(
        self,
        model: InternVL,
        config: EngineConfig,
        *,
        stop_ids: Sequence[int],
    ) -> None:
        """`stop_ids` end an answer unless its request ignores them. Raises ConfigError for invalid settings."""
        check_config(config)
        self.model = model.eval()
        longest = min(config.max_model_len, model.config.language.max_position_embeddings)
        self.config = replace(config, max_model_len=longest)
        self.stop_ids = tuple(stop_ids)
        self._answers: dict[str, Iterator[TokenOutput]] = {}  # in order of arrival
        self._num_added = self._num_steps = self._num_prompt_tokens = self._num_generated_tokens = 0

    @property
    def has_work(self) -> bool:
        """Whether any request is waiting or running."""
        return bool(self._answers)

    @property
    def is_full(self) -> bool:
        """Whether `add` would raise OverloadedError."""
        return len(self._answers) > self.config.max_queue

    def add(self, request: Request) -> None:
        """Queue a request. Raises the errors of `Engine.add`."""
        check_prompt(request.prompt, self.model.config, self.config.max_model_len)
        check_params(request.params, self.model.config.language.vocab_size, self.stop_ids)
        if self.is_full:
            raise OverloadedError(f"{self.config.max_queue} requests are waiting, which is the limit of the queue.")
        self._answers[request.id] = generate(
            self.model,
            request,
            stop_ids=self.stop_ids,
            max_model_len=self.config.max_model_len,
            default_seed=derive_seed(self.config.seed, self._num_added),
            matcher=request.matcher(),
        )
        self._num_added += 1
        self._num_prompt_tokens += request.prompt.num_tokens

    def abort(self, request_id: str) -> None:
        """Drop a request. Unknown and finished ids are ignored."""
        self._answers.pop(request_id, None)

    def step(self) -> list[TokenOutput]:
        """Return the next token of the oldest request. Raises EngineError if the model fails on it."""
        request_id, answer = next(iter(self._answers.items()))
        try:
            output = next(answer)
        except Exception as error:
            self.abort(request_id)
            raise failure(error, (request_id,)) from error
        self._num_steps += 1
        self._num_generated_tokens += len(output.token_ids)
        if output.finish_reason:
            self.abort(request_id)
        return [output]

    def stats(self) -> EngineStats:
        """Return the engine's current counters."""
        return EngineStats(
            num_waiting=max(0, len(self._answers) - 1),
            num_running=min(1, len(self._answers)),
            num_steps=self._num_steps,
            num_prompt_tokens=self._num_prompt_tokens,
            num_generated_tokens=self._num_generated_tokens,
        )

    def backlog(self, *, has_images: bool) -> Backlog:  # a prompt is computed again with each token
        """Return the work that is before a further request: the answers, one after another."""
        most = self.config.max_model_len
        num_waiting = max(0, len(self._answers) - 1)
        return Backlog(((0, most),) * min(1, len(self._answers)), (most,) * num_waiting, num_slots=1)
