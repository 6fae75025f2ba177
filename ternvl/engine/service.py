"""Runs an engine on a thread of its own for any number of callers, which may be event loops or threads.

Callers put orders (add, abort) into a queue, on which the thread sleeps while there is no work. The thread carries them
out between two steps, so the engine needs no lock. Outputs go back through the callback of each group of requests. A
thread that only waits for its outputs may borrow the engine, and then does all this itself.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from queue import Empty, SimpleQueue
from typing import Protocol

from ternvl.config import EngineConfig
from ternvl.engine.loan import Loan
from ternvl.engine.request import Item, Request, RequestGroup
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

__all__ = ["Item", "RequestGroup", "Service", "StepEngine"]

logger = logging.getLogger(__name__)


class StepEngine(Protocol):
    """The interface of an engine that a service runs: `Engine` or `ReferenceEngine`."""

    config: EngineConfig

    def add(self, request: Request) -> None:
        """Queue a request."""

    def step(self) -> list[TokenOutput]:
        """Run one step, and return its outputs."""

    def abort(self, request_id: str) -> None:
        """Drop a request."""

    def stats(self) -> EngineStats:
        """Return the engine's current counters."""


class Service:
    """Runs one engine for any number of callers."""

    def __init__(self, engine: StepEngine, *, log_interval: float = 10.0) -> None:
        """The engine's activity is logged every `log_interval` seconds while there is work."""
        self.engine = engine
        self._process = os.getpid()
        self._starting = threading.Lock()
        self._orders: SimpleQueue[Callable[[], None] | None] = SimpleQueue()  # None: close
        self._open: set[RequestGroup] = set()  # groups whose outputs are read
        self._groups: dict[str, RequestGroup] = {}  # by request id; used only on the thread that has the engine
        self._loan: Loan | None = None  # by which another thread has the engine
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

        Raises EngineError in a process that was forked after the service was made, because a fork has the engine's
        memory but none of its threads.
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
        """Refuse new requests, let the running ones finish, and stop the thread."""
        self.stop()
        await asyncio.to_thread(self._join)

    def stop(self) -> None:
        """Refuse new requests, and stop the thread once the running ones have finished. It returns at once."""
        self._closing = True
        self._orders.put(None)

    def _join(self, seconds: float | None = None) -> None:
        if self._thread is not None and self._thread not in (threading.current_thread(), None):
            self._thread.join(seconds)

    def end(self) -> None:
        """Abort all requests and stop the thread. It returns once the thread has ended, or after ten seconds."""
        self.abort_all()
        self.stop()
        self._join(10.0)

    def abort_all(self) -> None:
        """Refuse new requests and abort the running ones, which end with UnavailableError at once."""
        self._closing = True
        for group in tuple(self._open):
            self._abort_group(group, UnavailableError("The server is stopping and gave this request up."))

    def abort_if(self, concerns: Callable[[Request], bool], error: TernvlError) -> None:
        """Abort the groups with a request for which `concerns` returns true; they end with `error` at once."""
        for group in tuple(self._open):
            if any(map(concerns, group.requests)):
                self._abort_group(group, error)

    def check_room(self, num_requests: int) -> None:
        """Raise the error that `open` would raise now for so many requests. It needs no prompts, so it can be early."""
        if self._closing or not self.is_running:
            raise UnavailableError("The engine is not running and takes no requests.")
        self._check_queue(num_requests)

    def retry_after(self, num_requests: int) -> int:
        """Estimate the seconds until the queue has room for `num_requests` more; at least 1."""
        return self._pace.seconds_for(num_requests)

    def open(self, requests: tuple[Request, ...], put: Callable[[Item], bool]) -> RequestGroup:
        """Add requests, all or none. `put` takes their outputs and, if they fail, one error.

        `close_group` must follow. Raises UnavailableError if the service is closed, RequestError if the queue can never
        hold so many requests, OverloadedError if it has no room for them now. `put` gets the other errors of
        `Engine.add`, EngineError if the engine fails, RequestError if a grammar exceeds its limits, and
        UnavailableError on `abort_all`.
        """
        self.check_room(len(requests))
        group = RequestGroup(requests, put)
        self._open.add(group)
        self._orders.put(partial(self._add, group))
        return group

    def close_group(self, group: RequestGroup, *, has_ended: bool) -> None:
        """Forget a group. Unless it `has_ended`, its requests are aborted before the engine's next step."""
        self._open.discard(group)
        if not has_ended:
            self._orders.put(partial(self._drop, group))

    async def submit(self, *requests: Request, deadline: float | None = None) -> AsyncGenerator[TokenOutput]:
        """Yield the outputs of requests until each request has had one with a finish reason.

        An error of one request ends them all. Closing the iterator aborts the requests that still run. So does reaching
        `deadline`, a time of the event loop's clock, which raises RequestTimeoutError. Raises the errors of `open` and
        those that `open` passes to `put`, none of them before the first output is awaited.
        """
        loop, items = asyncio.get_running_loop(), asyncio.Queue[Item]()
        group = self.open(requests, partial(_put_threadsafe, loop, items))
        expiry = None
        if deadline is not None:
            expiry = loop.call_at(deadline, self._abort_group, group, RequestTimeoutError())
        pending = {request.id for request in requests}
        try:
            while pending:
                yield _unwrap(await items.get(), pending)
        finally:
            if expiry:
                expiry.cancel()
            self.close_group(group, has_ended=not pending)

    def outputs(self, *requests: Request) -> Generator[TokenOutput]:
        """Yield the outputs of requests on a thread without an event loop, with the errors of `submit`."""
        items = SimpleQueue[Item]()
        group = self.open(requests, partial(_put, items))
        pending = {request.id for request in requests}
        try:
            while pending:
                yield _unwrap(items.get(), pending)
        finally:
            self.close_group(group, has_ended=not pending)
            if pending:
                self.wait_for_orders()

    @contextmanager
    def borrow(self) -> Iterator[Loan]:
        """Ask for the engine until the block ends. Other callers' requests are then served by `Loan.next` as well."""
        loan = Loan(self._turn)
        try:
            if self._loan is None and not self._groups:
                self._orders.put(partial(self._lend, loan))
                while self.is_running and not loan.wait(0.1):
                    pass
            yield loan
        finally:
            if self._loan is loan:
                self._loan = None  # now, so that this thread's next call finds the engine free
            loan.end()

    def _lend(self, loan: Loan) -> None:
        if self._loan is not None or self._groups:
            loan.refuse()
            return
        self._loan = loan
        try:
            loan.grant()
        finally:
            self._loan = None

    def _turn(self) -> None:
        if not self._take_orders():
            self._orders.put(None)  # ends the thread once it has the engine back
        self._run_step()

    def wait_for_orders(self) -> None:
        """Return once all orders given so far have been carried out, or the thread has ended."""
        done = threading.Event()
        self._orders.put(done.set)
        if self._loan is not None and self._loan.is_mine:
            self._turn()
        while self.is_running and not done.wait(0.1):
            pass

    def abort(self, request_id: str) -> None:
        """End one request early: its last output has the finish reason ABORT. Others of its group continue."""
        self._orders.put(partial(self._end, request_id))

    def _abort_group(self, group: RequestGroup, error: TernvlError) -> None:
        """End a group with an error at once, even during a step. It is freed even if its reader is slow."""
        group.put(error)
        self._orders.put(partial(self._drop, group))

    def _check_queue(self, num_requests: int) -> None:
        room, num_waiting = self.engine.config.max_queue, self.engine.stats().num_waiting
        if num_requests > room:
            raise RequestError(f"n is {num_requests}, but the queue holds only {room} answers.", param="n")
        if num_waiting + num_requests > room:
            raise OverloadedError(
                f"{num_waiting} of the {room} places in the queue are taken; {num_requests} more do not fit.",
                retry_after=self.retry_after(num_waiting + num_requests - room),
            )

    def _work(self) -> None:
        while self._take_orders():
            self._run_step()

    def _run_step(self) -> None:
        if self._groups:
            self._log.begin_step()
            self._step()
            self._log.end_step()
        self._log.write()

    def _take_orders(self) -> bool:
        """Carry out the orders; sleep while there is no work. Return False once it is closed and has no work."""
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
        """Abort the requests of a group that the engine still has, and pass the error to its reader."""
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
        except BaseException:  # Ctrl-C on a thread that has borrowed the engine
            self._fail(tuple(self._groups), EngineError("The engine was interrupted while it worked on this request."))
            raise
        else:
            for output in outputs:
                self._deliver(output)

    def _deliver(self, output: TokenOutput) -> None:
        group = self._groups.get(output.request_id)
        if group is None:
            return  # an earlier output of this step was refused, so the group was dropped
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


def _unwrap(item: Item, pending: set[str]) -> TokenOutput:
    """Return an output, or raise an error. The last output of a request removes it from `pending`."""
    if isinstance(item, TernvlError):
        raise item
    if item.finish_reason is not None:
        pending.discard(item.request_id)
    return item
