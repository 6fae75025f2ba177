"""What the engine did lately, as a line in the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from ternvl.engine.engine import EngineStats

logger = logging.getLogger(__name__)


class StatsLog:
    """One line an interval while there is work, and a last one when there is none any more."""

    def __init__(
        self, stats: Callable[[], EngineStats], interval: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`interval` and `clock` are in seconds."""
        self._stats = stats
        self._interval = interval
        self._clock = clock
        self._before = EngineStats()
        self._first = self._last = 0.0  # time of the first step and the end of the last one that no line told yet
        self._due: float | None = None

    @property
    def seconds_left(self) -> float | None:
        """Until the next line; None where there is nothing to tell."""
        return None if self._due is None else max(0.0, self._due - self._clock())

    def begin_step(self) -> None:
        """A step is about to run."""
        if self._due is None:
            self._first = self._clock()
            self._due = self._first + self._interval

    def end_step(self) -> None:
        """The step has run."""
        self._last = self._clock()

    def write(self) -> None:
        """Write the line where it is due."""
        if self._due is None or self._clock() < self._due:
            return
        stats = self._stats()
        logger.info("%s", describe(self._before, stats, self._last - self._first))
        self._before, self._first = stats, self._last
        self._due = self._due + self._interval if stats.num_running or stats.num_waiting else None


def describe(before: EngineStats, after: EngineStats, seconds: float) -> str:
    """What runs and waits now, and shares and rates of what happened between two moments.

    A share of nothing is "-".
    """

    def grown(name: str) -> int:
        return int(getattr(after, name) - getattr(before, name))

    def rate(name: str) -> str:
        return f"{grown(name) / max(seconds, 0.001):.0f} tok/s"

    parts = [
        f"running {after.num_running}",
        f"waiting {after.num_waiting}",
        f"KV {_share(after.num_blocks - after.num_free_blocks, after.num_blocks)}",
        f"prefix hits {_share(grown('num_prefix_hit_tokens'), grown('num_prompt_tokens'))}",
        f"image hits {_share(grown('num_image_hits'), grown('num_image_lookups'))}",
        f"prefill {rate('num_prefill_tokens')}",
        f"decode {rate('num_generated_tokens')}",
    ]
    if drafted := grown("num_draft_tokens"):
        parts.append(f"drafts held {_share(grown('num_accepted_tokens'), drafted)}")
    if preemptions := grown("num_preemptions"):
        parts.append(f"preempted {preemptions}")
    return ", ".join(parts)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"
