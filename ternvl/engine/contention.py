"""Notices that other processes take the processors, and lets the engine compute in another way meanwhile.

The threads of a step wait for each other many times. On idle processors the fastest way is to spin. If another process
has taken the processor of one thread, the others spin in vain: they use up the time that the scheduler would have given
to the thread that they wait for, and a step takes several times as long. Meanwhile steps use fewer threads, or threads
that soon sleep.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

import torch

from ternvl.kernels import loader
from ternvl.workers.threads import can_start

_WINDOW = 0.25
"""Seconds of steps between two looks."""
_MUCH = 0.3
"""Processors that were lost to others in a window, from which on fewer threads compute."""
_SHORTEST, _LONGEST = 1.0, 16.0
"""Seconds until all threads are tried again; twice as many after each time that the processors were still busy."""
_TASKS = Path("/proc/self/task")


def seconds_waited() -> float:
    """Return for how long the threads of this process were ready to run and waited for a processor, all together.

    It is 0 where the system does not say: only Linux does, in the second number of `schedstat`.
    """
    total = 0
    with suppress(OSError):
        for task in os.listdir(_TASKS):
            with suppress(OSError, ValueError, IndexError):  # the thread has ended
                total += int((_TASKS / task / "schedstat").read_bytes().split()[1])
    return total / 1e9


class Sleepers:
    """OpenMP threads that only sleep. While there are any, all others sleep soon when they wait for each other.

    libgomp lets threads spin for an instant alone if the process has more of them than there are processors.
    """

    def __init__(self) -> None:
        self._end: weakref.finalize[..., Sleepers] | None = None

    def begin(self, can_start: Callable[[int], bool]) -> None:
        """Start so many threads that there are more than processors, if `can_start` says that the system allows it."""
        processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        number = max(0, processors - torch.get_num_threads()) + 2
        if self._end is None and loader.is_loaded() and can_start(number):
            end = Event()
            self._end = weakref.finalize(self, end.set)
            self._end.atexit = False  # Python ends a thread that wakes up meanwhile in the middle of a native call
            Thread(target=_sleep, args=(number, end), name="ternvl-sleepers", daemon=True).start()

    def end(self) -> None:
        """End these threads."""
        if self._end is not None:
            self._end()
            self._end = None


def _sleep(number: int, end: Event) -> None:
    torch.get_num_threads()  # torch sets its own number at the first question
    loader.set_num_threads(number)
    loader.start_team()
    end.wait()
    loader.release_team()


class Contention:
    """Watches the steps of one engine, which any threads run, one at a time."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        waited: Callable[[], float] = seconds_waited,
        can_start: Callable[[int], bool] = can_start,
    ) -> None:
        """`clock` returns seconds, `waited` the seconds for which threads of this process have waited so far.

        `can_start` says whether the system allows so many further threads.
        """
        self._clock, self._waited, self._can_start = clock, waited, can_start
        self._team: int | None = None
        """The threads that the latest step had. libgomp ends those that a step does not need."""
        self._since, self._before, self._last = float("-inf"), 0.0, float("-inf")
        self._until, self._pause = 0.0, _SHORTEST
        self.num_threads: int | None = None
        """The threads that compute a step at present; None as long as the processors are free: all."""
        self._sleepers = Sleepers()

    @contextmanager
    def step(self, *, has_tiles: bool = False) -> Iterator[None]:
        """Run a step within the context, and look afterwards whether it is time. Pauses between steps do not count.

        A step that encodes tiles always has all threads: torch computes some of it with a library whose number of
        threads is its own, and a team that changes its size with each operation takes many times as long.
        """
        if self._clock() - self._last > _WINDOW:
            self._since, self._before = self._clock(), self._waited()
        try:
            with _threads(self._allowed(None if has_tiles else self.num_threads)):
                yield
        finally:
            self._last = self._clock()
        if self._last - self._since >= _WINDOW:
            self._look()

    def _allowed(self, wanted: int | None) -> int:
        """Return how many threads compute this step: no more than the system allows, or libgomp ends the process.

        All threads are wanted if `wanted` is None.
        """
        wanted = torch.get_num_threads() if wanted is None else wanted
        if self._team is None or wanted <= self._team or self._can_start(wanted - self._team):
            self._team = wanted
        return self._team

    def _look(self) -> None:
        waited = self._waited()
        lost = (waited - self._before) / (self._last - self._since)
        self._since, self._before = self._last, waited
        if self.num_threads is not None:
            if self._last > self._until:
                self.num_threads = None
                self._sleepers.end()
        elif lost > _MUCH:
            self.num_threads = max(1, int(torch.get_num_threads() - lost))
            self._sleepers.begin(self._can_start)
            self._until, self._pause = self._last + self._pause, min(2 * self._pause, _LONGEST)
        else:
            self._pause = _SHORTEST


@contextmanager
def _threads(num_threads: int | None) -> Iterator[None]:
    """Compute with at most this many threads. Without kernels nothing changes: torch's bits depend on the number."""
    before = torch.get_num_threads()
    if num_threads is None or num_threads >= before or not loader.is_loaded():
        yield
        return
    loader.set_num_threads(num_threads)
    try:
        yield
    finally:
        loader.set_num_threads(before)
