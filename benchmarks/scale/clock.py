"""The clock of a simulation: actions that happen at given times, in order."""

from __future__ import annotations

import math
from collections.abc import Callable
from heapq import heappop, heappush

Action = Callable[[], None]


class Clock:
    """Simulated time in seconds. Actions of the same time happen in the order in which they were given."""

    def __init__(self) -> None:
        self.now = 0.0
        self._actions: list[tuple[float, int, Action]] = []
        self._num_given = 0

    def at(self, time: float, action: Action) -> None:
        """Let an action happen at a time; one that has passed means now."""
        self._num_given += 1
        heappush(self._actions, (max(time, self.now), self._num_given, action))

    def after(self, seconds: float, action: Action) -> None:
        """Let an action happen so many seconds from now."""
        self.at(self.now + seconds, action)

    def run(self, until: float = math.inf) -> None:
        """Let actions happen, to the last one or to a time, which is then the time."""
        actions = self._actions
        while actions and actions[0][0] <= until:
            self.now, _, action = heappop(actions)
            action()
        if math.isfinite(until):
            self.now = max(self.now, until)
