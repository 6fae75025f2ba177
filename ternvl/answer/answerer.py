"""Answers asks in this process: all at once, as a stream on a thread, or as a stream on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Sequence
from contextlib import aclosing, nullcontext
from itertools import count
from typing import Self

from ternvl.answer.ask import Ask, PreparedAsk, prepare
from ternvl.answer.batch import AskBatch
from ternvl.answer.choice import Choices, generate, generate_on_thread
from ternvl.answer.completion import Fold, RequestOutput
from ternvl.answer.delta import Delta
from ternvl.engine.request import Request
from ternvl.engine.service import Service
from ternvl.lora.adapter import Adapter
from ternvl.lora.pool import AdapterPool
from ternvl.prompt.build import PromptBuilder
from ternvl.sampling.grammar import GrammarCompiler
from ternvl.types import Prompt

_NUMBERS = count()


class _Folded:
    """What both kinds of streams know of their answer."""

    _fold: Fold

    @property
    def prompt(self) -> Prompt:
        """What is answered."""
        return self._fold.prompt

    @property
    def output(self) -> RequestOutput:
        """The whole answer, once the iterator has ended."""
        return self._fold.output()


class AnswerStream(_Folded, Iterator[Delta]):
    """An answer as it is generated: an iterator of its deltas.

    Leaving a `with` block, or `close()`, ends the work on an answer that is not wanted any further.
    """

    def __init__(self, deltas: Generator[Delta], fold: Fold) -> None:
        self._deltas, self._fold = deltas, fold

    def __next__(self) -> Delta:
        delta = next(self._deltas)
        self._fold.add(delta)
        return delta

    def close(self) -> None:
        """End the work on the answer."""
        self._deltas.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncAnswerStream(_Folded, AsyncIterator[Delta]):
    """`AnswerStream` for an event loop: `async with`, `async for` and `await aclose()`."""

    def __init__(self, deltas: AsyncGenerator[Delta], fold: Fold) -> None:
        self._deltas, self._fold = deltas, fold

    async def __anext__(self) -> Delta:
        delta = await anext(self._deltas)
        self._fold.add(delta)
        return delta

    async def aclose(self) -> None:
        """End the work on the answer."""
        await self._deltas.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class Answerer:
    """Answers asks through one service, which the first of them starts."""

    def __init__(
        self, service: Service, adapters: AdapterPool, builder: PromptBuilder, grammars: GrammarCompiler
    ) -> None:
        self._service, self._adapters = service, adapters
        self._builder, self._grammars = builder, grammars

    def answer(self, asks: Sequence[Ask], *, ended: Callable[[], None] = lambda: None) -> list[RequestOutput]:
        """Answer asks in one batch; `ended` is called at the end of each choice.

        Raises what `prepare` raises, UnknownAdapterError, and EngineError if the engine fails; nothing of the call is
        then left in the engine.
        """
        ready = [self._prepare(ask) for ask in asks]
        batch = AskBatch(self._service, self._adapters, self._builder.tokenizer)
        return batch.run(ready, iter(_new_id, None), ended=ended)

    def stream(self, ask: Ask) -> AnswerStream:
        """Answer an ask delta by delta. Raises what `prepare` raises; drawing a delta raises what `answer` raises."""
        ready = self._prepare(ask)
        return AnswerStream(self._deltas(ready), Fold(ready))

    async def astream(self, ask: Ask) -> AsyncAnswerStream:
        """`stream` for an event loop, which is never blocked."""
        ready = await asyncio.to_thread(self._prepare, ask)
        return AsyncAnswerStream(self._async_deltas(ready), Fold(ready))

    def _prepare(self, ask: Ask) -> PreparedAsk:
        self._service.start()
        return prepare(ask, self._builder, self._grammars, max_model_len=self._service.engine.config.max_model_len)

    def _requests(self, ready: PreparedAsk, adapter: Adapter | None) -> tuple[list[Request], Choices]:
        requests = ready.requests(_new_id(), adapter)
        return requests, Choices.of([(ready, requests)], self._builder.tokenizer, self._service.abort)

    def _deltas(self, ready: PreparedAsk) -> Generator[Delta]:
        name = ready.ask.adapter
        with nullcontext() if name is None else self._adapters.use(name) as adapter:
            yield from generate_on_thread(self._service, *self._requests(ready, adapter))

    async def _async_deltas(self, ready: PreparedAsk) -> AsyncGenerator[Delta]:
        async with (
            self._adapters.lease(ready.ask.adapter) as adapter,
            aclosing(generate(self._service, *self._requests(ready, adapter))) as deltas,
        ):
            async for delta in deltas:
                yield delta


def _new_id() -> str:
    return f"ask-{next(_NUMBERS)}"
