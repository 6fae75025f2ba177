"""Runs an engine's steps and, between two of them, its callers' orders, such as adding and aborting requests.

Any thread may give orders. They are carried out by the one thread that runs the loop, so the engine needs no lock.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from math import ceil
from queue import Empty, SimpleQueue
from typing import Protocol

from ternvl.config import EngineConfig
from ternvl.engine.admission.backlog import Backlog
from ternvl.engine.admission.forecast import Forecast
from ternvl.engine.request import Request, RequestGroup
from ternvl.engine.stats import MAX_SECONDS, EngineStats, Pace, StatsLog
from ternvl.errors import EngineError, OverloadedError, RequestError, TernvlError
from ternvl.types import FinishReason, TokenOutput
from ternvl.workers.trim import Trimmer

logger = logging.getLogger(__name__)


class StepEngine(Protocol):
    """The interface of an engine that a loop runs: `Engine` or `ReferenceEngine`."""

    config: EngineConfig

    def add(self, request: Request) -> None:
        """Queue a request."""

    def step(self) -> list[TokenOutput]:
        """Run one step, and return its outputs."""

    def abort(self, request_id: str) -> None:
        """Drop a request."""

    def stats(self) -> EngineStats:
        """Return the engine's current counters."""

    def backlog(self, *, has_images: bool) -> Backlog:
        """Return the work that is before a further request, which has images or not."""


class Loop:
    """One engine, the orders for it, and the groups whose requests it has."""

    def __init__(self, engine: StepEngine, log_interval: float, clock: Callable[[], float] = time.monotonic) -> None:
        """The engine's activity is logged every `log_interval` seconds while there is work. `clock` is in seconds."""
        self._orders: SimpleQueue[Callable[[], None] | None] = SimpleQueue()  # None: close
        self._groups: dict[str, RequestGroup] = {}  # by request id
        self._num_tokens: Counter[str] = Counter()  # of answers, by request id
        self._clock = clock
        self._log = StatsLog(lambda: self.engine.stats(), log_interval)
        self._pace = Pace(clock)
        self._trim = Trimmer(clock=clock)
        self._began: float | None = None
        self.engine = engine

    @property
    def engine(self) -> StepEngine:
        """The engine. Another one may take its place while it has no work."""
        return self._engine

    @engine.setter
    def engine(self, engine: StepEngine) -> None:
        self._engine, self._stats = engine, engine.stats()  # the counters after the latest step
        self._forecast = None if engine.config.max_queue_wait is None else Forecast()

    @property
    def is_idle(self) -> bool:
        """Whether the engine has no requests. It may have got one by an order that is not carried out yet."""
        return not self._groups

    @property
    def seconds_in_step(self) -> float:
        """For how long the present step runs; 0 between two steps. For any thread."""
        began = self._began
        return 0.0 if began is None else self._clock() - began

    def order(self, action: Callable[[], None]) -> None:
        """Have `action` called between two steps. Any thread may call this."""
        self._orders.put(action)

    def close(self) -> None:
        """Let `take_orders` return False once there is no more work. Any thread may call this."""
        self._orders.put(None)

    def reopen(self) -> None:
        """Forget all orders, also that to close."""
        self._orders = SimpleQueue()

    def add(self, group: RequestGroup) -> None:
        """Order a group's requests to be added, all or none. Any thread may call this."""
        self.order(partial(self._add, group))

    def drop(self, group: RequestGroup) -> None:
        """Order the requests of a group that still run to be aborted. Any thread may call this."""
        self.order(partial(self._drop, group))

    def abort(self, request_id: str) -> None:
        """Order one request to be aborted: its last output has the finish reason ABORT. Any thread may call this."""
        self.order(partial(self._abort, request_id))

    def check_queue(self, num_requests: int, *, has_images: bool = False) -> None:
        """Raise RequestError or OverloadedError if the queue cannot hold so many more requests. For any thread.

        Raises OverloadedError also if the first of them is likely to wait for longer than `max_queue_wait`.
        """
        stats = self.engine.stats()
        room, num_waiting = self.engine.config.max_queue, stats.num_waiting
        if num_requests > room:
            raise RequestError(f"n is {num_requests}, but the queue holds only {room} answers.", param="n")
        self._check_wait(has_images=has_images)
        if num_waiting + num_requests > room:
            raise OverloadedError(
                f"{num_waiting} of the {room} places in the queue are taken; {num_requests} more do not fit.",
                retry_after=self.retry_after(num_waiting + num_requests - room),
            )

    def _check_wait(self, *, has_images: bool) -> None:
        longest = self.engine.config.max_queue_wait
        if longest is None or self._forecast is None:
            return
        wait = self._forecast.wait(self.engine.backlog(has_images=has_images))
        if wait is not None and wait > longest:
            raise OverloadedError(
                f"The request would wait for about {_in_words(wait)} s, but may wait for {longest:g} s "
                "(--max-queue-wait).",
                retry_after=min(max(1, ceil(wait - longest)), MAX_SECONDS),
            )

    def retry_after(self, num_requests: int) -> int:
        """Estimate the seconds until the queue has room for `num_requests` more; at least 1. For any thread."""
        return self._pace.seconds_for(num_requests)

    def take_orders(self, *, may_wait: bool) -> bool:
        """Carry out the orders; if it `may_wait`, sleep while there is no work. Return False once closed and idle."""
        was_idle = self.is_idle
        is_open = self._take_order(self._log.seconds_left) if was_idle and may_wait else True
        while not self._orders.empty():
            is_open = self._take_order(None) and is_open
        if not is_open and self._groups:
            self.close()  # again, for when the work is done
        if was_idle and self._groups:
            self._pace.resume()
        return is_open or bool(self._groups)

    def run_step(self) -> None:
        """Run one step if there is work, and pass its outputs to the groups."""
        if self._groups:
            self._log.begin_step()
            self._began = self._clock()
            try:
                self._step()
                self._learn(self._clock() - self._began)
            finally:
                self._began = None
            self._log.end_step()
            self._trim()
        self._log.write()

    def _learn(self, seconds: float) -> None:
        if self._forecast is not None:
            before, self._stats = self._stats, self.engine.stats()
            self._forecast.learn(before, self._stats, seconds)

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
            self.check_queue(len(group.requests), has_images=group.has_images)
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

    def _abort(self, request_id: str) -> None:
        if request_id in self._groups:
            self.engine.abort(request_id)
            self._forget(request_id).put(TokenOutput(request_id, (), FinishReason.ABORT))

    def _forget(self, request_id: str) -> RequestGroup:
        self._pace.count()
        if self._forecast is not None:
            self._forecast.end(self._num_tokens.pop(request_id, 0))
        group = self._groups.pop(request_id)
        if not self._groups:
            self._pace.pause()
        return group

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
        if self._forecast is not None:
            self._num_tokens[output.request_id] += len(output.token_ids)
        if not group.put(output):
            self._drop(group)
        elif output.finish_reason is not None:
            self._forget(output.request_id)

    def _fail(self, request_ids: Iterable[str], error: TernvlError) -> None:
        for group in {self._groups[request_id] for request_id in request_ids}:
            self._drop(group, error)


def _in_words(seconds: float) -> str:
    return f"{seconds:.0f}" if seconds >= 1 else f"{seconds:.1g}"
