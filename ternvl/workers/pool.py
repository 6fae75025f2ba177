"""A few worker processes that take turns, so that nobody waits for everything that one client has asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Lock
from typing import Any, Generic, TypeVar

from ternvl.errors import UnavailableError
from ternvl.workers.turns import Turns
from ternvl.workers.worker import Worker

_W = TypeVar("_W", bound=Worker)


class WorkerPool(Generic[_W]):
    """Up to `size` workers, which are started when they are needed and used again. It is thread-safe."""

    def __init__(self, size: int, new: Callable[[], _W], *most: int) -> None:
        """`new` starts a worker. `most[i]` is the most workers at a time for the same i-th name of a turn."""
        self._new_worker = new
        self._turns = Turns(size, *most)
        self._lock = Lock()
        self._idle: list[_W] = []
        self._all: set[_W] = set()
        self._is_closed = False

    def start(self) -> None:
        """Start the first worker, and do not wait for it."""
        with self._lock:
            if not self._is_closed and not self._all:
                self._idle.append(self._new())

    def close(self) -> None:
        """End all workers. A job that is being done is given up, and so are those that wait."""
        self._turns.close()
        with self._lock:
            self._is_closed = True
            for worker in self._all:
                worker.kill()
            for worker in self._idle:
                worker.end()

    @property
    def state(self) -> dict[str, Any]:
        """The workers, by what they do now, and how many jobs wait for one."""
        with self._lock:
            workers = [each.state | {"busy": each not in self._idle} for each in self._all]
        return {"workers": workers, "waiting": self._turns.num_waiting}

    @contextmanager
    def worker(self, what: str, *names: str) -> Iterator[_W]:
        """Have a worker in this context. `what` is what errors call the thing that it is for.

        Raises OverloadedError if none is free for long, UnavailableError if the pool is closed or no process can be
        started.
        """
        with self._turns.turn(what, *names):
            with self._lock:
                worker = self._take()
            try:
                yield worker
            finally:
                with self._lock:
                    self._give_back(worker)

    def _take(self) -> _W:
        if self._is_closed:
            raise UnavailableError("The server is stopping and takes no more work.")
        while self._idle:
            worker = self._idle.pop()
            if worker.is_usable:
                return worker
            self._drop(worker)
        return self._new()

    def _give_back(self, worker: _W) -> None:
        if worker.is_usable:
            self._idle.append(worker)
            return
        self._drop(worker)
        if not self._is_closed:
            with suppress(UnavailableError):  # then the next job tries again
                self._idle.append(self._new())

    def _new(self) -> _W:
        worker = self._new_worker()
        self._all.add(worker)
        return worker

    def _drop(self, worker: _W) -> None:
        self._all.discard(worker)
        worker.end()
