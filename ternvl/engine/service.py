"""Runs an engine on a thread of its own for any number of callers, which may be event loops or threads.

The thread sleeps while there is no work. Outputs go back through the callback of each group of requests. A thread that
only waits for its outputs may borrow the engine and run the steps itself.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue

from ternvl.engine.loan import Loan
from ternvl.engine.loop import Loop, StepEngine
from ternvl.engine.request import Item, Request, RequestGroup
from ternvl.errors import EngineError, RequestTimeoutError, TernvlError, UnavailableError
from ternvl.kernels.loader import release_team, start_team
from ternvl.types import TokenOutput

__all__ = ["Item", "RequestGroup", "Service", "StepEngine"]


class Service:
    """Runs one engine for any number of callers."""

    def __init__(self, engine: StepEngine, *, log_interval: float = 10.0) -> None:
        """The engine's activity is logged every `log_interval` seconds while there is work."""
        self._process = os.getpid()
        self._starting = threading.Lock()
        self._loop = Loop(engine, log_interval)
        self._open: set[RequestGroup] = set()  # groups whose outputs are read
        self._loan: Loan | None = None  # by which another thread has the engine
        self._thread: threading.Thread | None = None
        self._closing = False

    @property
    def engine(self) -> StepEngine:
        """The engine. Another one may take its place while it has no work."""
        return self._loop.engine

    @engine.setter
    def engine(self, engine: StepEngine) -> None:
        self._loop.engine = engine

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
            self._loop.reopen()
            release_team()  # this thread may have loaded the model; another one computes now
            self._thread = threading.Thread(target=self._work, name="ternvl-engine", daemon=True)
            self._thread.start()

    async def close(self) -> None:
        """Refuse new requests, let the running ones finish, and stop the thread."""
        self.stop()
        await asyncio.to_thread(self._join)

    def stop(self) -> None:
        """Refuse new requests, and stop the thread once the running ones have finished. It returns at once."""
        self._closing = True
        self._loop.close()

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

    def check_room(self, num_requests: int, *, has_images: bool = False) -> None:
        """Raise the error that `open` would raise now for so many requests. It needs no prompts, so it can be early."""
        if self._closing or not self.is_running:
            raise UnavailableError("The engine is not running and takes no requests.")
        self._loop.check_queue(num_requests, has_images=has_images)

    @property
    def seconds_in_step(self) -> float:
        """For how long the present step runs; 0 between two steps."""
        return self._loop.seconds_in_step

    def retry_after(self, num_requests: int) -> int:
        """Estimate the seconds until the queue has room for `num_requests` more; at least 1."""
        return self._loop.retry_after(num_requests)

    def open(self, requests: tuple[Request, ...], put: Callable[[Item], bool]) -> RequestGroup:
        """Add requests, all or none. `put` takes their outputs and, if they fail, one error.

        `close_group` must follow. Raises UnavailableError if the service is closed, RequestError if the queue can never
        hold so many requests, OverloadedError if it has no room for them now. `put` gets the other errors of
        `Engine.add`, EngineError if the engine fails, RequestError if a grammar exceeds its limits, and
        UnavailableError on `abort_all`.
        """
        group = RequestGroup(requests, put)
        self.check_room(len(requests), has_images=group.has_images)
        self._open.add(group)
        self._loop.add(group)
        return group

    def close_group(self, group: RequestGroup, *, has_ended: bool) -> None:
        """Forget a group. Unless it `has_ended`, its requests are aborted before the engine's next step."""
        self._open.discard(group)
        if not has_ended:
            self._loop.drop(group)

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
        """Ask for the engine until the block ends. `Loan.next` then serves the requests of other callers as well."""
        loan = Loan(self._loop)
        try:
            if self._loan is None and self._loop.is_idle:
                self._loop.order(partial(self._lend, loan))
                while self.is_running and not loan.wait(0.1):
                    pass
            yield loan
        finally:
            if loan.is_mine:
                release_team()  # whoever computes next
            if self._loan is loan:
                self._loan = None  # now, so that this thread's next call finds the engine free
            loan.end()

    def _lend(self, loan: Loan) -> None:
        if self._loan is None and self._loop.is_idle:
            self._loan = loan
            release_team()  # the borrower computes now
            loan.grant()
            self._loan = None
        else:
            loan.refuse()

    def wait_for_orders(self) -> None:
        """Return once all orders given so far have been carried out, or the thread has ended."""
        done = threading.Event()
        self._loop.order(done.set)
        if self._loan is not None and self._loan.is_mine:
            self._loan.take_orders()
        while self.is_running and not done.wait(0.1):
            pass

    def abort(self, request_id: str) -> None:
        """End one request early: its last output has the finish reason ABORT. Others of its group continue."""
        self._loop.abort(request_id)

    def _abort_group(self, group: RequestGroup, error: TernvlError) -> None:
        """End a group with an error at once, even during a step. It is freed even if its reader is slow."""
        group.put(error)
        self._loop.drop(group)

    def _work(self) -> None:
        start_team()
        while self._loop.take_orders(may_wait=True):
            self._loop.run_step()


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
