"""The threads that build prompts and compile grammars, so that the event loop only moves bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from ternvl.answer.ask import Ask, PreparedAsk, build_prompt
from ternvl.engine.request import check_prompt
from ternvl.errors import RequestTimeoutError
from ternvl.types import Prompt

if TYPE_CHECKING:
    from ternvl.llm import LLM

_COMPILERS = 2
"""Grammars that are compiled at the same time. Further grammars wait, and delay nothing else."""

_COUNTED_CONTEXTS = 8

_SETTLED = 1.0
"""Seconds after the start at which the vocabulary is read for grammars; earlier it would slow the start down."""

_T = TypeVar("_T")


class Threads:
    """Runs blocking work for requests, each kind in a pool of its own."""

    def __init__(self, llm: LLM, num_builders: int) -> None:
        """`num_builders` threads fetch, decode and cut images."""
        self._llm = llm
        self._builders = ThreadPoolExecutor(num_builders, thread_name_prefix="prompt")
        self._compilers = ThreadPoolExecutor(_COMPILERS, thread_name_prefix="grammar")
        self._preparing: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Read the vocabulary for grammars a moment from now."""
        loop = asyncio.get_running_loop()
        self._preparing = loop.call_later(_SETTLED, self._compilers.submit, self._llm.grammars.prepare)

    def close(self) -> None:
        """Begin no further work."""
        if self._preparing is not None:
            self._preparing.cancel()
        self._builders.shutdown(wait=False, cancel_futures=True)
        self._compilers.shutdown(wait=False, cancel_futures=True)

    async def run(self, work: Callable[[], _T], *, deadline: float | None = None) -> _T:
        """Return what `work` returns. Raises RequestTimeoutError past the deadline, a time of the loop's clock."""
        return await _in_thread(None, work, deadline)

    async def prepare(self, ask: Ask, *, deadline: float | None = None) -> PreparedAsk:
        """Do what `ternvl.answer.ask.prepare` does, and raise RequestTimeoutError past the deadline."""
        params = ask.whole_params
        grammar = None
        if params.grammar is not None:
            compiling = partial(self._llm.grammars.compile, params.grammar)
            grammar = await _in_thread(self._compilers, compiling, deadline)
        limit = self._llm.engine.config.max_model_len
        prompt = await self.build_prompt(ask, max_tokens=limit, deadline=deadline)
        check_prompt(prompt, self._llm.config, limit, path=ask.path)
        return PreparedAsk(ask, params, prompt, grammar)

    async def build_prompt(self, ask: Ask, *, max_tokens: int | None = None, deadline: float | None = None) -> Prompt:
        """Do what `ternvl.answer.ask.build_prompt` does, and raise RequestTimeoutError past the deadline.

        By default a text may have as many tokens as eight contexts hold, so that clients can count what does not fit.
        Prompts with images have threads of their own, so that text never waits for other requests' downloads.
        """
        limit = _COUNTED_CONTEXTS * self._llm.engine.config.max_model_len
        building = partial(build_prompt, ask, self._llm.builder, max_tokens=limit if max_tokens is None else max_tokens)
        return await _in_thread(self._builders if ask.has_images else None, building, deadline)


async def _in_thread(pool: Executor | None, work: Callable[[], _T], deadline: float | None) -> _T:
    working = asyncio.get_running_loop().run_in_executor(pool, work)
    try:
        async with asyncio.timeout_at(deadline) as limit:
            return await working
    except TimeoutError:
        if limit.expired():
            raise RequestTimeoutError from None
        raise
