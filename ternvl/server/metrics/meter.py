"""Measures one request: its tokens, and the times between them."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from ternvl.answer.delta import Delta
from ternvl.server.log import request_log
from ternvl.server.metrics.recorder import Metrics
from ternvl.server.tracing.attributes import note_stages
from ternvl.types import FirstToken, Prompt


@dataclass
class _Answer:
    """One answer so far. Times are of `perf_counter`."""

    first: float
    """When its first token came."""
    prefill: float
    """Seconds of its steps before that."""
    last: float
    num_tokens: int = 0


class Meter:
    """The meter of a request that begins when it is made."""

    def __init__(self, metrics: Metrics, model: str, clock: Callable[[], float] = time.perf_counter) -> None:
        """`model` is the name of the model that answers. `clock` returns seconds."""
        self._metrics, self._model, self._clock = metrics, model, clock
        self._started = clock()
        self._answers: dict[int, _Answer] = {}
        self._ended: set[int] = set()
        self._firsts: list[FirstToken] = []
        self._last = self._started
        self._record = request_log.current.get() or request_log.Record()

    async def watch(self, deltas: AsyncGenerator[Delta], prompts: Sequence[Prompt], n: int) -> AsyncGenerator[Delta]:
        """Yield the deltas of `n` answers to each prompt and record them. Closing this generator closes `deltas`."""
        reason, began = "abort", self._clock()
        self._observe("n", n)
        self._record.model = self._model
        self._record.prompt_tokens = sum(prompt.num_tokens for prompt in prompts)
        self._record.image_tokens = sum(prompt.num_image_tokens for prompt in prompts)
        self._record.num_images = sum(len(prompt.images) for prompt in prompts)
        try:
            async with aclosing(deltas):
                async for delta in deltas:
                    self._count(delta, prompts, n)
                    yield delta
        except Exception:
            reason = "error"
            raise
        finally:
            for index in range(n * len(prompts)):
                if index not in self._ended:
                    self._end(index, reason)
            note_stages(self._firsts, began, self._last if self._answers else self._clock())

    def _count(self, delta: Delta, prompts: Sequence[Prompt], n: int) -> None:
        now, answer = self._clock(), self._answers.get(delta.index)
        if not self._answers:
            self._record.first_token_seconds = now - self._started
            for prompt in prompts:
                self._metrics.count("prompt_tokens", self._model, prompt.num_tokens)
                self._metrics.count("image_tokens", self._model, prompt.num_image_tokens)
        if answer is None:
            answer = self._begin(delta, now, prompts[delta.index // n].num_tokens)
            if delta.index % n == 0:
                self._metrics.count("cached_tokens", self._model, delta.num_cached_tokens)
                self._record.cached_tokens += delta.num_cached_tokens
        else:
            for _ in range(delta.num_tokens):  # the time of a delta is divided among its tokens
                self._observe("between_tokens", (now - answer.last) / delta.num_tokens)
        answer.last = self._last = now
        answer.num_tokens += delta.num_tokens
        self._metrics.count("tokens", self._model, delta.num_tokens)
        self._record.answer_tokens += delta.num_tokens
        if delta.finish_reason:
            self._end(delta.index, delta.finish_reason)

    def _begin(self, delta: Delta, now: float, num_prompt_tokens: int) -> _Answer:
        self._observe("first_token", now - self._started)
        self._observe("prompt", num_prompt_tokens)
        self._firsts += [delta.first_token] if delta.first_token else []
        queued, prefill = delta.timing or (0.0, 0.0)
        self._record.queue_seconds = max(queued, self._record.queue_seconds)
        self._observe("queue", queued)
        self._observe("prefill", prefill)
        self._answers[delta.index] = answer = _Answer(now, prefill, now)
        return answer

    def _end(self, index: int, reason: str) -> None:
        self._ended.add(index)
        self._record.finish_reasons.append(reason)
        self._metrics.count("finished", self._model, finish_reason=reason)
        self._metrics.count("success", self._model, finished_reason="stop" if reason == "tool_calls" else reason)
        if (answer := self._answers.get(index)) is None:
            return
        seconds = answer.last - answer.first
        self._observe("answer", answer.last - self._started)
        self._observe("decode", seconds)
        self._observe("inference", answer.prefill + seconds)
        self._observe("generation", answer.num_tokens)
        if answer.num_tokens > 1:
            self._observe("token", seconds / (answer.num_tokens - 1))

    def _observe(self, key: str, value: float) -> None:
        self._metrics.observe(key, value, self._model)
