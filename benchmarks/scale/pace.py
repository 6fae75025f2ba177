"""How fast a server works on a machine that others use too."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise


class Pace:
    """How fast work goes at a time: the part of a second of work that is done in a second."""

    def __init__(self, times: Sequence[float] = (), shares: Sequence[float] = ()) -> None:
        """`shares[i]` holds from `times[i]` to the next time; before and after all, work takes its own time."""
        self._times = [*times] or [0.0]
        self._shares = [*shares, 1.0] if times else [1.0]
        self._done = list(
            accumulate(
                (
                    (end - begin) * share
                    for (begin, end), share in zip(pairwise(self._times), self._shares, strict=False)
                ),
                initial=0.0,
            )
        )

    def _total(self, time: float) -> float:
        """Return the work that can be done from the first time to another one."""
        index = bisect_right(self._times, time) - 1
        if index < 0:
            return time - self._times[0]
        return self._done[index] + (time - self._times[index]) * self._shares[index]

    def work(self, start: float, end: float) -> float:
        """Return the seconds of work that can be done between two times."""
        return self._total(end) - self._total(start)

    def end(self, start: float, seconds: float) -> float:
        """Return when so many seconds of work are done that begin at `start`."""
        goal = self._total(start) + seconds
        index = bisect_right(self._done, goal) - 1
        if index < 0:
            return self._times[0] + goal
        return self._times[index] + (goal - self._done[index]) / self._shares[index]

    @property
    def mean(self) -> float:
        """The mean share."""
        span = self._times[-1] - self._times[0]
        return self._done[-1] / span if span else 1.0
