"""Estimates how soon requests will end, and so when there will be room in the queue."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from math import ceil

MAX_SECONDS = 60
"""Longest estimate in seconds; later ends cannot be predicted."""

_WINDOW = 64


class Pace:
    """Counts the ends of requests since the engine was last idle, the latest 64 of them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns seconds."""
        self._clock = clock
        self._ends: deque[float] = deque()
        self._since = clock()

    def reset(self) -> None:
        """Forget earlier ends. Called when work begins after a pause, which must not count as slow work."""
        self._ends.clear()
        self._since = self._clock()

    def count(self) -> None:
        """Record that a request has ended."""
        self._ends.append(self._clock())
        if len(self._ends) > _WINDOW:
            self._since = self._ends.popleft()

    def seconds_for(self, num_places: int) -> int:
        """Return in how many whole seconds `num_places` requests are likely to end, from 1 to MAX_SECONDS."""
        rate = max(1, len(self._ends)) / max(self._clock() - self._since, 0.001)
        return min(max(1, ceil(num_places / rate)), MAX_SECONDS)
