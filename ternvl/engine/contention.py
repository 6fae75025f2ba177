"""Notices that other processes take the processors, and lets the engine compute with fewer threads meanwhile.

The threads of a step wait for each other many times. On idle processors the fastest way is to spin. If another process
has taken the processor of one thread, the others spin in vain: they use up the time that the scheduler would have given
to the thread that they wait for, and a step takes several times as long.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

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

    @contextmanager
    def step(self) -> Iterator[None]:
        """Run a step within the context, and look afterwards whether it is time. Pauses between steps do not count."""
        if self._clock() - self._last > _WINDOW:
            self._since, self._before = self._clock(), self._waited()
        try:
            with _threads(self._allowed()):
                yield
        finally:
            self._last = self._clock()
        if self._last - self._since >= _WINDOW:
            self._look()

    def _allowed(self) -> int:
        """Return how many threads compute this step: no more than the system allows, or libgomp ends the process."""
        wanted = torch.get_num_threads() if self.num_threads is None else self.num_threads
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
        elif lost > _MUCH:
            self.num_threads = max(1, int(torch.get_num_threads() - lost))
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
