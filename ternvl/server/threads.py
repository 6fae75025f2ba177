"""The threads that build prompts and compile grammars, so that this work does not block the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Any, TypeVar

from ternvl.answer.ask import Ask, PreparedAsk, build_prompt
from ternvl.config import ServerConfig
from ternvl.engine.request import check_prompt
from ternvl.errors import RequestTimeoutError
from ternvl.machine.cgroup import Cgroup
from ternvl.params import Grammar, SamplingParams
from ternvl.prompt.decoding.pool import DecoderPool
from ternvl.prompt.timing.timeline import stage
from ternvl.sampling.grammar import CompiledGrammar, Trial
from ternvl.server.guard import caller
from ternvl.server.metrics.recorder import Metrics
from ternvl.types import Prompt
from ternvl.workers.threads import LastingThreads

if TYPE_CHECKING:
    from ternvl.llm import LLM

_COMPILERS = 2
"""The most grammars that are compiled at the same time. Further grammars wait, and delay no other work."""

_OTHERS = 8
"""The threads for texts and JSON."""

_COUNTED_CONTEXTS = 8
"""The most contexts of text whose tokens are counted for a client."""

_SETTLED = 1.0
"""Seconds from the start until what later requests need is prepared; doing it at once would slow the start down."""

_T = TypeVar("_T")


def num_decoders(most: int, cgroup: Cgroup | None = None) -> int:
    """Return how many processes decode images: `most`, but no more than the quota of a container has processors."""
    quota = (cgroup or Cgroup()).processors()
    return most if quota is None else min(most, max(1, ceil(quota)))


class Threads:
    """Runs blocking work for requests, each kind in a pool of its own."""

    def __init__(self, llm: LLM, config: ServerConfig, metrics: Metrics) -> None:
        self._llm, self._metrics = llm, metrics
        self._decoders = DecoderPool(
            num_decoders(config.prompt_workers), llm.builder.limits, config.image_decode_timeout
        )
        self._builder = llm.builder.decoding_in(self._decoders)
        # A thread for each request, because it mostly waits: for its turn to fetch or to decode, which is fair.
        self._builders = LastingThreads(config.max_concurrent_requests, "prompt")
        self._compilers = LastingThreads(_COMPILERS, "grammar")
        self._trials = llm.grammars.trials()
        self._preparing: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Schedule the reading of the vocabulary for grammars, and the start of processes for grammars and images."""
        loop = asyncio.get_running_loop()
        loop.set_default_executor(LastingThreads(_OTHERS, "other"))
        self._preparing = loop.call_later(_SETTLED, self._prepare)

    def _prepare(self) -> None:
        self._compilers.submit(self._llm.grammars.prepare)
        self._compilers.submit(self._trials.start)
        self._builders.submit(self._decoders.start)

    def close(self) -> None:
        """Stop the threads. Work that has not begun is cancelled."""
        if self._preparing is not None:
            self._preparing.cancel()
        self._builders.shutdown(wait=False, cancel_futures=True)
        self._builder.close()
        self._trials.close()
        self._compilers.shutdown(wait=False, cancel_futures=True)

    @property
    def image_workers(self) -> dict[str, Any]:
        """What the processes do that decode images."""
        return self._decoders.state

    async def run(self, work: Callable[[], _T], *, deadline: float | None = None) -> _T:
        """Run `work` on a thread and return its result.

        Raises RequestTimeoutError past the deadline, which is a time of the event loop's clock.
        """
        return await _in_thread(None, work, deadline)

    async def prepare(self, ask: Ask, *, deadline: float | None = None) -> PreparedAsk:
        """Run `ternvl.answer.ask.prepare` on threads. Raises its errors, and RequestTimeoutError past the deadline."""
        params, grammar = ask.params, None
        if params.grammar is not None or ask.tools.definitions or ask.tools.choice != "auto":
            params, grammar = await self._compile(ask, deadline)
        limit = self._llm.engine.config.max_model_len
        prompt = await self.build_prompt(ask, max_tokens=limit, deadline=deadline)
        check_prompt(prompt, self._llm.config, limit, path=ask.path)
        return PreparedAsk(ask, params, prompt, grammar)

    async def _compile(self, ask: Ask, deadline: float | None) -> tuple[SamplingParams, CompiledGrammar | None]:
        params = await _in_thread(self._compilers, lambda: ask.whole_params, deadline)
        if params.grammar is None:
            return params, None
        is_quick = self._llm.grammars.is_quick(params.grammar, salt=ask.cache_salt)
        # A form that may be costly waits for a process to be tried in, which is fair; small ones do not wait for it.
        pool, trial = (self._compilers, None) if is_quick else (self._builders, partial(self._try, caller.client()))
        compiling = partial(self._compile_grammar, params.grammar, ask.cache_salt, trial)
        return params, await _in_thread(pool, compiling, deadline)

    def _compile_grammar(self, grammar: Grammar, salt: str, trial: Trial | None) -> CompiledGrammar:
        began = time.perf_counter()
        with stage("grammar"):
            compiled = self._llm.grammars.compile(grammar, salt=salt, trial=trial)
        self._metrics.observe("grammar", time.perf_counter() - began, self._llm.name)
        return compiled

    def _try(self, client: str, text: str, param: str) -> str:
        return self._trials.reason(text, param, client)

    async def build_prompt(self, ask: Ask, *, max_tokens: int | None = None, deadline: float | None = None) -> Prompt:
        """Run `ternvl.answer.ask.build_prompt` on a thread.

        By default tokens are only counted: the prompt has no pixels, and a text may have as many tokens as eight
        contexts hold, so that clients can count what does not fit. Prompts with images and videos have their own
        threads, so that prompts of text never wait for the downloads of other requests. Raises the errors of
        `build_prompt`, and RequestTimeoutError past the deadline.
        """
        limit = _COUNTED_CONTEXTS * self._llm.engine.config.max_model_len if max_tokens is None else max_tokens
        builder = self._builder if max_tokens is not None else self._builder.counting()
        building = partial(build_prompt, replace(ask, client=caller.client()), builder, max_tokens=limit)
        return await _in_thread(self._builders if ask.has_media else None, building, deadline)


async def _in_thread(pool: Executor | None, work: Callable[[], _T], deadline: float | None) -> _T:
    working = asyncio.get_running_loop().run_in_executor(pool, copy_context().run, work)
    try:
        async with asyncio.timeout_at(deadline) as limit:
            return await working
    except TimeoutError:
        if limit.expired():
            raise RequestTimeoutError from None
        raise
