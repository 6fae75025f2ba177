"""The threads that build prompts and compile grammars, so that this work does not block the event loop."""

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
"""The most grammars that are compiled at the same time. Further grammars wait, and delay no other work."""

_COUNTED_CONTEXTS = 8
"""The most contexts of text whose tokens are counted for a client."""

_SETTLED = 1.0
"""Seconds from the start until the vocabulary is read for grammars; doing it at once would slow the start down."""

_T = TypeVar("_T")


class Threads:
    """Runs blocking work for requests, each kind in a pool of its own."""

    def __init__(self, llm: LLM, num_builders: int) -> None:
        """`num_builders` threads fetch, decode and cut images, and as many videos."""
        self._llm = llm
        self._builders = ThreadPoolExecutor(num_builders, thread_name_prefix="prompt")
        self._samplers = ThreadPoolExecutor(num_builders, thread_name_prefix="video")
        self._compilers = ThreadPoolExecutor(_COMPILERS, thread_name_prefix="grammar")
        self._preparing: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Schedule the reading of the vocabulary for grammars."""
        loop = asyncio.get_running_loop()
        self._preparing = loop.call_later(_SETTLED, self._compilers.submit, self._llm.grammars.prepare)

    def close(self) -> None:
        """Stop the threads. Work that has not begun is cancelled."""
        if self._preparing is not None:
            self._preparing.cancel()
        self._builders.shutdown(wait=False, cancel_futures=True)
        self._samplers.shutdown(wait=False, cancel_futures=True)
        self._compilers.shutdown(wait=False, cancel_futures=True)

    async def run(self, work: Callable[[], _T], *, deadline: float | None = None) -> _T:
        """Run `work` on a thread and return its result.

        Raises RequestTimeoutError past the deadline, which is a time of the event loop's clock.
        """
        return await _in_thread(None, work, deadline)

    async def prepare(self, ask: Ask, *, deadline: float | None = None) -> PreparedAsk:
        """Run `ternvl.answer.ask.prepare` on threads. Raises its errors, and RequestTimeoutError past the deadline."""
        params = ask.whole_params
        grammar = None
        if params.grammar is not None:
            compiling = partial(self._llm.grammars.compile, params.grammar, salt=ask.cache_salt)
            grammar = await _in_thread(self._compilers, compiling, deadline)
        limit = self._llm.engine.config.max_model_len
        prompt = await self.build_prompt(ask, max_tokens=limit, deadline=deadline)
        check_prompt(prompt, self._llm.config, limit, path=ask.path)
        return PreparedAsk(ask, params, prompt, grammar)

    async def build_prompt(self, ask: Ask, *, max_tokens: int | None = None, deadline: float | None = None) -> Prompt:
        """Run `ternvl.answer.ask.build_prompt` on a thread.

        By default a text may have as many tokens as eight contexts hold, so that clients can count what does not fit.
        Prompts with images have their own threads, and so have those with videos, so that prompts of text never wait
        for the downloads of other requests, nor images for videos. Raises the errors of `build_prompt`, and
        RequestTimeoutError past the deadline.
        """
        limit = _COUNTED_CONTEXTS * self._llm.engine.config.max_model_len
        building = partial(build_prompt, ask, self._llm.builder, max_tokens=limit if max_tokens is None else max_tokens)
        pool = self._samplers if ask.has_videos else self._builders if ask.has_media else None
        return await _in_thread(pool, building, deadline)


async def _in_thread(pool: Executor | None, work: Callable[[], _T], deadline: float | None) -> _T:
    working = asyncio.get_running_loop().run_in_executor(pool, work)
    try:
        async with asyncio.timeout_at(deadline) as limit:
            return await working
    except TimeoutError:
        if limit.expired():
            raise RequestTimeoutError from None
        raise
