"""When refused clients are asked to return: the value of `Retry-After`."""

from __future__ import annotations

import time
from collections.abc import Callable
from heapq import heappop, heappush

_MOST = 4_096
"""The most clients that are remembered. By then the estimates have long reached their limit."""


class Returns:
    """Asks one refused client after another to return as requests are likely to end.

    If all were told when the next place will be free, all would return for it, and most would be refused again.
    """

    def __init__(self, seconds_for: Callable[[int], int], clock: Callable[[], float] = time.monotonic) -> None:
        """`seconds_for` estimates the seconds until so many requests have ended."""
        self._seconds_for = seconds_for
        self._clock = clock
        self._times: list[float] = []  # a heap of the times at which clients were asked to return

    def next(self) -> int:
        """Return in how many seconds there is a place that nobody was asked to return for."""
        now = self._clock()
        while self._times and self._times[0] <= now:
            heappop(self._times)
        return self._seconds_for(1 + len(self._times))

    def expect(self, seconds: int) -> None:
        """Note that a client was asked to return in so many seconds."""
        if len(self._times) < _MOST:
            heappush(self._times, self._clock() + seconds)
