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
from queue import Empty, SimpleQueue
from typing import Protocol

from ternvl.config import EngineConfig
from ternvl.engine.engine import EngineStats
from ternvl.engine.pace import Pace
from ternvl.engine.stats_log import StatsLog
from ternvl.errors import (
    EngineError,
    OverloadedError,
    RequestError,
    RequestTimeoutError,
    TernvlError,
    UnavailableError,
)
from ternvl.types import FinishReason, Request, TokenOutput

logger = logging.getLogger(__name__)


class StepEngine(Protocol):
    """What is served: `Engine`, or `ReferenceEngine`."""

    config: EngineConfig

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
    """The way of outputs to whoever waits for them, for requests that stand and fall together."""

    def __init__(self, requests: tuple[Request, ...]) -> None:
        self.requests = requests
        self.items: asyncio.Queue[TokenOutput | TernvlError] = asyncio.Queue()
        self.loop = asyncio.get_running_loop()

    def put(self, item: TokenOutput | TernvlError) -> bool:
        """From any thread. False where the event loop is gone, and nobody waits any more."""
        try:
            self.loop.call_soon_threadsafe(self.items.put_nowait, item)
        except RuntimeError:
            return False
        return True


class Service:
    """Serves one engine to any number of coroutines."""

    def __init__(self, engine: StepEngine, *, log_interval: float = 10.0) -> None:
        """What the engine does is logged every `log_interval` seconds while there is work."""
        self.engine = engine
        self._orders: SimpleQueue[Callable[[], None] | None] = SimpleQueue()  # None: close
        self._open: set[_Stream] = set()  # those that someone reads
        self._streams: dict[str, _Stream] = {}  # by request; the thread's own
        self._log = StatsLog(engine.stats, log_interval)
        self._pace = Pace()
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

    def abort_all(self) -> None:
        """Refuse new requests and give up those that are here: who waits for them gets UnavailableError at once."""
        self._closing = True
        for stream in tuple(self._open):
            self._give_up(stream, UnavailableError("The server is stopping and gave this request up."))

    def give_up_if(self, concerns: Callable[[Request], bool], error: TernvlError) -> None:
        """Give up the requests that are concerned, with those they were submitted with: their readers get the error at
        once."""
        for stream in tuple(self._open):
            if any(map(concerns, stream.requests)):
                self._give_up(stream, error)

    def check_room(self, num_requests: int) -> None:
        """Raises what `submit` would raise now for so many requests: a look before their prompts are built."""
        if self._closing or not self._thread.is_alive():
            raise UnavailableError("The engine is not running: it takes no requests.")
        self._check_queue(num_requests)

    def retry_after(self, num_places: int) -> int:
        """Seconds until so many more requests are likely to find room, at least 1."""
        return self._pace.seconds_for(num_places)

    async def submit(self, *requests: Request, deadline: float | None = None) -> AsyncGenerator[TokenOutput]:
        """Outputs of requests, as they come, until each had one with a finish reason.

        The requests are taken all or none, and an error of one ends all. Leaving the iterator aborts what still runs;
        so does `deadline`, a time of the event loop's clock. Raises, at the first output, what `Engine.add` raises,
        OverloadedError where the queue has no room for all, RequestError where it never will and UnavailableError where
        the service is not open; later EngineError where the engine fails, RequestError where a grammar
        cannot be followed any further, RequestTimeoutError past the deadline and
        UnavailableError on `abort_all`.
        """
        self.check_room(len(requests))
        stream = _Stream(requests)
        self._orders.put(partial(self._add, stream))
        expiry = None
        if deadline is not None:
            expiry = stream.loop.call_at(deadline, self._give_up, stream, RequestTimeoutError())
        pending = {request.id for request in requests}
        self._open.add(stream)
        try:
            while pending:
                item = await stream.items.get()
                if isinstance(item, TernvlError):
                    raise item
                if item.finish_reason is not None:
                    pending.remove(item.request_id)
                yield item
        finally:
            self._open.remove(stream)
            if expiry:
                expiry.cancel()
            if pending:
                self._orders.put(partial(self._drop, stream))

    def abort(self, request_id: str) -> None:
        """End one request early: its last output has the finish reason ABORT. Others of its `submit` go on."""
        self._orders.put(partial(self._end, request_id))

    def _give_up(self, stream: _Stream, error: TernvlError) -> None:
        """Tells the reader at once, also in the middle of a step, and frees also what a reader who is slow holds."""
        stream.put(error)
        self._orders.put(partial(self._drop, stream))

    def _check_queue(self, num_requests: int) -> None:
        room, num_waiting = self.engine.config.max_queue, self.engine.stats().num_waiting
        if num_requests > room:
            raise RequestError(f"n is {num_requests}, but the queue holds only {room} answers.", param="n")
        if num_waiting + num_requests > room:
            raise OverloadedError(
                f"{num_waiting} of the {room} places in the queue are taken: there is no room for {num_requests} more.",
                retry_after=self.retry_after(num_waiting + num_requests - room),
            )

    def _work(self) -> None:
        while self._take_orders():
            if self.engine.has_work:
                self._log.begin_step()
                self._step()
                self._log.end_step()
            self._log.write()

    def _take_orders(self) -> bool:
        """Carry out what was ordered; sleeps while there is nothing to do. False when all is done and closed."""
        was_idle = not self.engine.has_work
        is_open = self._take_order(self._log.seconds_left) if was_idle else True
        while not self._orders.empty():
            is_open = self._take_order(None) and is_open
        if not is_open and self.engine.has_work:
            self._orders.put(None)  # for the time when the work is done
        if was_idle:
            self._pace.reset()
        return is_open or self.engine.has_work

    def _take_order(self, timeout: float | None) -> bool:
        """Carry out the next order, for which it waits `timeout` seconds. False where it is to close."""
        try:
            order = self._orders.get(timeout=timeout)
        except Empty:
            return True
        if order is not None:
            order()
        return order is not None

    def _add(self, stream: _Stream) -> None:
        try:
            self._check_queue(len(stream.requests))
            for request in stream.requests:
                self.engine.add(request)
                self._streams[request.id] = stream
        except TernvlError as error:
            self._drop(stream, error)
        except Exception:
            logger.exception("A request could not be added.")
            self._drop(stream, EngineError("The engine could not take this request."))

    def _drop(self, stream: _Stream, error: TernvlError | None = None) -> None:
        """Abort all requests of a stream that are here, and tell its reader of the error."""
        for request in stream.requests:
            if self._streams.get(request.id) is stream:
                self.engine.abort(request.id)
                self._forget(request.id)
        if error is not None:
            stream.put(error)

    def _end(self, request_id: str) -> None:
        if request_id in self._streams:
            self.engine.abort(request_id)
            self._forget(request_id).put(TokenOutput(request_id, (), FinishReason.ABORT))

    def _forget(self, request_id: str) -> _Stream:
        self._pace.count()
        return self._streams.pop(request_id)

    def _step(self) -> None:
        try:
            outputs = self.engine.step()
        except EngineError as error:
            self._fail(error.request_ids, error.cause or EngineError(str(error)))
        except Exception:
            logger.exception("The engine failed outside the model; all its requests are dropped.")
            self._fail(tuple(self._streams), EngineError("The engine failed while it worked on this request."))
        else:
            for output in outputs:
                self._deliver(output)

    def _deliver(self, output: TokenOutput) -> None:
        stream = self._streams.get(output.request_id)
        if stream is None:
            return  # an output before it found the reader gone
        if not stream.put(output):
            self._drop(stream)
        elif output.finish_reason is not None:
            self._forget(output.request_id)

    def _fail(self, request_ids: Iterable[str], error: TernvlError) -> None:
        for stream in {self._streams[request_id] for request_id in request_ids}:
            self._drop(stream, error)
