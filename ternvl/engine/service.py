"""One engine for any number of callers: a thread steps it, and callers wait for outputs, on event loops or threads.

Orders (add, abort) go to the thread through a queue, on which it sleeps while there is no work. They are carried out
between two steps, so the engine needs no lock. Outputs go back through a callback of each group of requests.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from functools import partial
from queue import Empty, SimpleQueue
from typing import Protocol

from ternvl.config import EngineConfig
from ternvl.engine.request import Request
from ternvl.engine.stats import EngineStats, Pace, StatsLog
from ternvl.errors import (
    EngineError,
    OverloadedError,
    RequestError,
    RequestTimeoutError,
    TernvlError,
    UnavailableError,
)
from ternvl.types import FinishReason, TokenOutput

logger = logging.getLogger(__name__)

Item = TokenOutput | TernvlError
"""What a caller gets for a group of requests: an output of one of them, or the error that ends them all."""


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


class RequestGroup:
    """Requests that succeed or fail together, and the callback that takes their outputs."""

    def __init__(self, requests: tuple[Request, ...], put: Callable[[Item], bool]) -> None:
        """`put` is called from any thread; it returns False if nobody will ever read the item."""
        self.requests = requests
        self.put = put


class Service:
    """Serves one engine to any number of callers."""

    def __init__(self, engine: StepEngine, *, log_interval: float = 10.0) -> None:
        """The engine's activity is logged every `log_interval` seconds while there is work."""
        self.engine = engine
        self._process = os.getpid()
        self._starting = threading.Lock()
        self._orders: SimpleQueue[Callable[[], None] | None] = SimpleQueue()  # None: close
        self._open: set[RequestGroup] = set()  # groups that someone reads
        self._groups: dict[str, RequestGroup] = {}  # by request id; only the thread uses it
        self._log = StatsLog(engine.stats, log_interval)
        self._pace = Pace()
        self._thread: threading.Thread | None = None
        self._closing = False

    @property
    def is_running(self) -> bool:
        """Whether the engine's thread is alive."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Start the engine's thread unless it runs. A service that was closed can be started again.

        Raises EngineError in a process that was forked after the service was made: the engine's memory is shared with
        its parent there, but none of its threads are.
        """
        if os.getpid() != self._process:
            raise EngineError("The model was loaded before this process was forked; load it after the fork.")
        with self._starting:
            if self.is_running and not self._closing:
                return
            self._join()
            self._closing = False
            self._orders = SimpleQueue()
            self._thread = threading.Thread(target=self._work, name="ternvl-engine", daemon=True)
            self._thread.start()

    async def close(self) -> None:
        """Refuse new requests, let the present ones finish, and stop the thread."""
        self.stop()
        await asyncio.to_thread(self._join)

    def stop(self) -> None:
        """Refuse new requests and order the thread to end once the present ones have finished."""
        self._closing = True
        self._orders.put(None)

    def _join(self, seconds: float | None = None) -> None:
        if self._thread is not None and self._thread not in (threading.current_thread(), None):
            self._thread.join(seconds)

    def end(self) -> None:
        """Give up all requests and stop the thread; return once it has ended, or after ten seconds."""
        self.abort_all()
        self.stop()
        self._join(10.0)

    def abort_all(self) -> None:
        """Refuse new requests and give up the present ones: whoever waits for them gets UnavailableError at once."""
        self._closing = True
        for group in tuple(self._open):
            self._give_up(group, UnavailableError("The server is stopping and gave this request up."))

    def give_up_if(self, concerns: Callable[[Request], bool], error: TernvlError) -> None:
        """Give up the groups of which any request is concerned: their readers get the error at once."""
        for group in tuple(self._open):
            if any(map(concerns, group.requests)):
                self._give_up(group, error)

    def check_room(self, num_requests: int) -> None:
        """Raise what `submit` would raise now for so many requests, before their prompts are built."""
        if self._closing or not self.is_running:
            raise UnavailableError("The engine is not running: it takes no requests.")
        self._check_queue(num_requests)

    def retry_after(self, num_places: int) -> int:
        """Return the seconds until so many more requests are likely to find room, at least 1."""
        return self._pace.seconds_for(num_places)

    def open(self, requests: tuple[Request, ...], put: Callable[[Item], bool]) -> RequestGroup:
        """Add requests, all or none, whose outputs and whose error, if one comes, `put` takes.

        `close_group` must follow. Raises UnavailableError if the service is closed, RequestError if the queue can never
        hold so many requests, OverloadedError if it has no room for them now. `put` gets whatever else `Engine.add`
        raises; later EngineError if the engine fails, RequestError if a grammar cannot be followed any further, and
        UnavailableError on `abort_all`.
        """
        self.check_room(len(requests))
        group = RequestGroup(requests, put)
        self._open.add(group)
        self._orders.put(partial(self._add, group))
        return group

    def close_group(self, group: RequestGroup, *, has_ended: bool) -> None:
        """Forget a group; unless it `has_ended`, its requests are aborted before the engine's next step."""
        self._open.discard(group)
        if not has_ended:
            self._orders.put(partial(self._drop, group))

    async def submit(self, *requests: Request, deadline: float | None = None) -> AsyncGenerator[TokenOutput]:
        """Yield outputs of requests as they come, until each request had one with a finish reason.

        An error of one request ends them all. Closing the iterator aborts those that still run, and so does
        `deadline`, a time of the event loop's clock. Raises, at the first output, what `open` raises and what it hands
        to `put`; RequestTimeoutError past the deadline.
        """
        loop, items = asyncio.get_running_loop(), asyncio.Queue[Item]()
        group = self.open(requests, partial(_put_threadsafe, loop, items))
        expiry = None
        if deadline is not None:
            expiry = loop.call_at(deadline, self._give_up, group, RequestTimeoutError())
        pending = {request.id for request in requests}
        try:
            while pending:
                yield _taken(await items.get(), pending)
        finally:
            if expiry:
                expiry.cancel()
            self.close_group(group, has_ended=not pending)

    def outputs(self, *requests: Request) -> Generator[TokenOutput]:
        """`submit` for a thread without an event loop: yields the same outputs and raises the same errors."""
        items = SimpleQueue[Item]()
        group = self.open(requests, partial(_put, items))
        pending = {request.id for request in requests}
        try:
            while pending:
                yield _taken(items.get(), pending)
        finally:
            self.close_group(group, has_ended=not pending)
            if pending:
                self.wait_for_orders()

    def wait_for_orders(self) -> None:
        """Return once the thread has carried out all orders given so far, or has ended."""
        done = threading.Event()
        self._orders.put(done.set)
        while self.is_running and not done.wait(0.1):
            pass

    def abort(self, request_id: str) -> None:
        """End one request early: its last output has the finish reason ABORT. Others of its group continue."""
        self._orders.put(partial(self._end, request_id))

    def _give_up(self, group: RequestGroup, error: TernvlError) -> None:
        """Raise the error at the reader at once, even during a step, and free the group even if its reader is slow."""
        group.put(error)
        self._orders.put(partial(self._drop, group))

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
            if self._groups:
                self._log.begin_step()
                self._step()
                self._log.end_step()
            self._log.write()

    def _take_orders(self) -> bool:
        """Carry out the orders; sleep while there is no work. Return False once all is done and the service closed."""
        was_idle = not self._groups
        is_open = self._take_order(self._log.seconds_left) if was_idle else True
        while not self._orders.empty():
            is_open = self._take_order(None) and is_open
        if not is_open and self._groups:
            self._orders.put(None)  # ends the thread once the work is done
        if was_idle:
            self._pace.reset()
        return is_open or bool(self._groups)

    def _take_order(self, timeout: float | None) -> bool:
        """Wait `timeout` seconds for the next order and carry it out. Return False if it is the order to close."""
        try:
            order = self._orders.get(timeout=timeout)
        except Empty:
            return True
        if order is not None:
            order()
        return order is not None

    def _add(self, group: RequestGroup) -> None:
        try:
            self._check_queue(len(group.requests))
            for request in group.requests:
                self.engine.add(request)
                self._groups[request.id] = group
        except TernvlError as error:
            self._drop(group, error)
        except Exception:
            logger.exception("A request could not be added.")
            self._drop(group, EngineError("The engine could not take this request."))

    def _drop(self, group: RequestGroup, error: TernvlError | None = None) -> None:
        """Abort all requests of a group that the engine still has, and hand its reader the error."""
        for request in group.requests:
            if self._groups.get(request.id) is group:
                self.engine.abort(request.id)
                self._forget(request.id)
        if error is not None:
            group.put(error)

    def _end(self, request_id: str) -> None:
        if request_id in self._groups:
            self.engine.abort(request_id)
            self._forget(request_id).put(TokenOutput(request_id, (), FinishReason.ABORT))

    def _forget(self, request_id: str) -> RequestGroup:
        self._pace.count()
        return self._groups.pop(request_id)

    def _step(self) -> None:
        try:
            outputs = self.engine.step()
        except EngineError as error:
            self._fail(error.request_ids, error.cause or EngineError(str(error)))
        except Exception:
            logger.exception("The engine failed outside the model; all its requests are dropped.")
            self._fail(tuple(self._groups), EngineError("The engine failed while it worked on this request."))
        else:
            for output in outputs:
                self._deliver(output)

    def _deliver(self, output: TokenOutput) -> None:
        group = self._groups.get(output.request_id)
        if group is None:
            return  # an earlier output of this step found that the reader is gone
        if not group.put(output):
            self._drop(group)
        elif output.finish_reason is not None:
            self._forget(output.request_id)

    def _fail(self, request_ids: Iterable[str], error: TernvlError) -> None:
        for group in {self._groups[request_id] for request_id in request_ids}:
            self._drop(group, error)


def _put_threadsafe(loop: asyncio.AbstractEventLoop, items: asyncio.Queue[Item], item: Item) -> bool:
    try:
        loop.call_soon_threadsafe(items.put_nowait, item)
    except RuntimeError:
        return False  # the loop is closed
    return True


def _put(items: SimpleQueue[Item], item: Item) -> bool:
    items.put(item)
    return True


def _taken(item: Item, pending: set[str]) -> TokenOutput:
    """Return an item that is an output, raise one that is an error. A request's last output leaves `pending`."""
    if isinstance(item, TernvlError):
        raise item
    if item.finish_reason is not None:
        pending.discard(item.request_id)
    return item
