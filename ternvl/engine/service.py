"""The engine for asyncio: one thread steps it, the event loop only moves outputs.

Orders (add, abort) go to the thread through a queue, on which it sleeps while there is no work; they are taken between
two steps, so the engine needs no lock. Outputs go back through each request's own event loop.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Iterable
from functools import partial
from queue import SimpleQueue
from typing import Protocol

from ternvl.engine.engine import EngineStats
from ternvl.errors import EngineError, TernvlError, UnavailableError
from ternvl.types import Request, TokenOutput

logger = logging.getLogger(__name__)


class StepEngine(Protocol):
    """What is served: `Engine`, or `ReferenceEngine`."""

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        ...

    def add(self, request: Request) -> None:
        """Queue a request."""
        ...

    def step(self) -> list[TokenOutput]:
        """Run one step."""
        ...

    def abort(self, request_id: str) -> None:
        """Drop a request."""
        ...

    def stats(self) -> EngineStats:
        """The engine now."""
        ...


class _Stream:
    """The way of one request's outputs to whoever waits for them."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.items: asyncio.Queue[TokenOutput | TernvlError] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def put(self, item: TokenOutput | TernvlError) -> bool:
        """From the engine's thread. False where the event loop is gone, and nobody waits any more."""
        try:
            self._loop.call_soon_threadsafe(self.items.put_nowait, item)
        except RuntimeError:
            return False
        return True


class Service:
    """Serves one engine to any number of coroutines."""

    def __init__(self, engine: StepEngine) -> None:
        self.engine = engine
        self._orders: SimpleQueue[Callable[[], None] | None] = SimpleQueue()  # None: close
        self._streams: dict[str, _Stream] = {}  # the thread's own
        self._thread = threading.Thread(target=self._work, name="ternvl-engine", daemon=True)
        self._closing = False

    def start(self) -> None:
        """Start the engine's thread. Once."""
        self._thread.start()

    async def close(self) -> None:
        """Refuse new requests, let those that are here end, and stop the thread."""
        self._closing = True
        self._orders.put(None)
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)

    async def submit(self, request: Request) -> AsyncGenerator[TokenOutput]:
        """Outputs of a request until the one with a finish reason. Leaving the iterator aborts the request.

        Raises, at the first output, what `Engine.add` raises and UnavailableError where the service is not open;
        EngineError where the engine fails.
        """
        if self._closing or not self._thread.is_alive():
            raise UnavailableError("The engine is not running: it takes no requests.")
        stream = _Stream(request)
        self._orders.put(partial(self._add, stream))
        ended = False
        try:
            while not ended:
                item = await stream.items.get()
                ended = isinstance(item, TernvlError) or item.finish_reason is not None
                if isinstance(item, TernvlError):
                    raise item
                yield item
        finally:
            if not ended:
                self._orders.put(partial(self._abort, request.id))

    def _work(self) -> None:
        while self._take_orders():
            if self.engine.has_work:
                self._step()

    def _take_orders(self) -> bool:
        """Carry out what was ordered; sleeps while there is nothing to do. False when all is done and closed."""
        sleeps = not self.engine.has_work
        is_open = True
        while sleeps or not self._orders.empty():
            sleeps = False
            order = self._orders.get()
            if order is None:
                is_open = False
            else:
                order()
        if not is_open and self.engine.has_work:
            self._orders.put(None)  # for the time when the work is done
        return is_open or self.engine.has_work

    def _add(self, stream: _Stream) -> None:
        try:
            self.engine.add(stream.request)
        except TernvlError as error:
            stream.put(error)
        except Exception:
            logger.exception("A request could not be added.")
            stream.put(EngineError("The engine could not take this request."))
        else:
            self._streams[stream.request.id] = stream

    def _abort(self, request_id: str) -> None:
        self.engine.abort(request_id)
        self._streams.pop(request_id, None)

    def _step(self) -> None:
        try:
            outputs = self.engine.step()
        except EngineError as error:
            self._fail(error.request_ids, str(error))
        except Exception:
            logger.exception("The engine failed outside the model; all its requests are dropped.")
            self._fail(list(self._streams), "The engine failed while it worked on this request.")
        else:
            for output in outputs:
                self._deliver(output)

    def _deliver(self, output: TokenOutput) -> None:
        if not self._streams[output.request_id].put(output):
            self.engine.abort(output.request_id)
            del self._streams[output.request_id]
        elif output.finish_reason is not None:
            del self._streams[output.request_id]

    def _fail(self, request_ids: Iterable[str], message: str) -> None:
        for request_id in request_ids:
            self.engine.abort(request_id)
            self._streams.pop(request_id).put(EngineError(message))
