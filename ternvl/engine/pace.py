"""How often places in the queue come free."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from math import ceil

MAX_SECONDS = 60
"""Longest wait that is told: what happens later than that is anybody's guess."""

_WINDOW = 64


class Pace:
    """Ends of requests since the engine was last idle, the latest 64 of them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds."""
        self._clock = clock
        self._ends: deque[float] = deque()
        self._since = clock()

    def reset(self) -> None:
        """Work begins after a pause, which says nothing of how fast it goes."""
        self._ends.clear()
        self._since = self._clock()

    def count(self) -> None:
        """One request has ended."""
        self._ends.append(self._clock())
        if len(self._ends) > _WINDOW:
            self._since = self._ends.popleft()

    def seconds_for(self, num_places: int) -> int:
        """Whole seconds in which that many requests are likely to end, from 1 to MAX_SECONDS."""
        rate = max(1, len(self._ends)) / max(self._clock() - self._since, 0.001)
        return min(max(1, ceil(num_places / rate)), MAX_SECONDS)
