"""The engine's counters, what its sequences do, the pace at which requests end, and a line about both in the log."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ternvl.engine.sequence import Sequence

MAX_SECONDS = 60
"""Longest estimate in seconds; later ends cannot be predicted."""

_WINDOW = 64

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The engine at one moment. Counts of tokens, tiles, images, steps and preemptions are since its start."""

    num_waiting: int = 0
    num_running: int = 0
    num_blocks: int = 0
    num_free_blocks: int = 0
    num_cached_blocks: int = 0
    """Free blocks that the prefix cache may still find."""
    num_held_images: int = 0
    """Images whose features a running request needs."""
    num_steps: int = 0
    num_prompt_tokens: int = 0
    """Tokens of prompts, counted when a sequence first runs, and once for several answers to one prompt."""
    num_prefix_hit_tokens: int = 0
    """Those of them that were found in the prefix cache."""
    num_prefill_tokens: int = 0
    """Tokens that were computed without a token being drawn for each."""
    num_generated_tokens: int = 0
    num_draft_tokens: int = 0
    """Tokens that speculation guessed and the model computed."""
    num_accepted_tokens: int = 0
    """Those of them that were drawn as guessed."""
    num_image_lookups: int = 0
    num_image_hits: int = 0
    """Those of them of which every tile was found."""
    num_tile_lookups: int = 0
    num_tile_hits: int = 0
    """Those of them that were in memory, or were being encoded for another tile."""
    num_stored_tile_hits: int = 0
    """Tiles whose features were read from disk."""
    num_damaged_tiles: int = 0
    """Files of tiles that could not be used."""
    num_encoded_tiles: int = 0
    num_preemptions: int = 0
    num_drafts: int = 0
    running_adapters: tuple[str, ...] = ()
    """The names of the adapters of sequences that run, and below of those that wait, in alphabetical order."""
    waiting_adapters: tuple[str, ...] = ()

    @property
    def kv_cache_use(self) -> float:
        """The share of the blocks that sequences use, from 0 to 1. Blocks that only the prefix cache holds are free."""
        return 1 - self.num_free_blocks / self.num_blocks if self.num_blocks else 0.0


@dataclass(frozen=True, slots=True)
class SequenceState:
    """What a sequence does at one moment, in numbers and names."""

    id: str
    status: str
    """waiting or running; finished if it has just ended."""
    age_seconds: float
    prompt_tokens: int
    output_tokens: int
    computed_tokens: int
    """Tokens whose keys and values are in the KV cache."""
    cached_tokens: int | None
    """Tokens of the prompt that were in the cache when it first ran; None before."""
    max_tokens: int
    """The most tokens that the answer may have."""
    blocks: int
    images: int
    adapter: str | None
    priority: int
    has_grammar: bool

    @classmethod
    def of(cls, sequence: Sequence) -> SequenceState:
        """Return the state of a sequence. Any thread may call it."""
        request, num_prompt = sequence.request, sequence.request.prompt.num_tokens
        return cls(
            id=sequence.id,
            status=sequence.status.name.lower(),
            age_seconds=round(time.perf_counter() - sequence.timing.added, 4),
            prompt_tokens=num_prompt,
            output_tokens=sequence.num_output_tokens,
            computed_tokens=sequence.num_computed,
            cached_tokens=sequence.num_cached_tokens,
            max_tokens=sequence.max_num_tokens - num_prompt,
            blocks=len(sequence.block_table),
            images=len(request.prompt.images),
            adapter=None if request.adapter is None else request.adapter.name,
            priority=request.priority,
            has_grammar=sequence.matcher is not None,
        )


class Pace:
    """The pace at which requests end, from the latest 64 ends. Only the time in which there is work counts."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns seconds."""
        self._clock = clock
        self._paused_at: float | None = clock()
        self._pauses = 0.0
        """Seconds without work, before the present pause."""
        self._ends: deque[float] = deque()
        self._since = self._worked
        """Seconds of work before the oldest of the ends that count."""

    @property
    def _worked(self) -> float:
        return (self._clock() if self._paused_at is None else self._paused_at) - self._pauses

    def pause(self) -> None:
        """Record that there is no more work."""
        if self._paused_at is None:
            self._paused_at = self._clock()

    def resume(self) -> None:
        """Record that there is work."""
        if self._paused_at is not None:
            self._pauses += self._clock() - self._paused_at
            self._paused_at = None

    def count(self) -> None:
        """Record that a request has ended."""
        self._ends.append(self._worked)
        if len(self._ends) > _WINDOW:
            self._since = self._ends.popleft()

    @property
    def is_known(self) -> bool:
        """Whether any request has ended."""
        return bool(self._ends)

    def wait_for(self, num_places: int) -> float:
        """Return in how many seconds `num_places` requests are likely to end.

        As long as no request has ended, each is likely to take as long as there has been work.
        """
        return num_places * max(self._worked - self._since, 0.001) / max(1, len(self._ends))

    def seconds_for(self, num_places: int) -> int:
        """Return `wait_for` in whole seconds, from 1 to MAX_SECONDS."""
        return min(max(1, ceil(self.wait_for(num_places))), MAX_SECONDS)


class StatsLog:
    """Writes one line per interval while there is work, and a last line when the work has ended."""

    def __init__(
        self, stats: Callable[[], EngineStats], interval: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`interval` and `clock` are in seconds."""
        self._stats = stats
        self._interval = interval
        self._clock = clock
        self._before = EngineStats()
        self._first = self._last = 0.0  # start of the first and end of the last step since the last line
        self._due: float | None = None

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the next line is due; None if no step has run since the last line."""
        return None if self._due is None else max(0.0, self._due - self._clock())

    def begin_step(self) -> None:
        """Record that a step begins."""
        if self._due is None:
            self._first = self._clock()
            self._due = self._first + self._interval

    def end_step(self) -> None:
        """Record that the step has ended."""
        self._last = self._clock()

    def write(self) -> None:
        """Write the line if it is due."""
        if self._due is None or self._clock() < self._due:
            return
        stats = self._stats()
        logger.info("%s", describe(self._before, stats, self._last - self._first))
        self._before, self._first = stats, self._last
        self._due = self._due + self._interval if stats.num_running or stats.num_waiting else None


def describe(before: EngineStats, after: EngineStats, seconds: float) -> str:
    """Describe how many sequences run and wait, and the shares and rates between two moments `seconds` apart.

    A share of a total of 0 is written as "-".
    """

    def increase(name: str) -> int:
        return int(getattr(after, name) - getattr(before, name))

    def rate(name: str) -> str:
        return f"{increase(name) / max(seconds, 0.001):.0f} tok/s"

    parts = [
        f"running {after.num_running}",
        f"waiting {after.num_waiting}",
        f"KV {_share(after.num_blocks - after.num_free_blocks, after.num_blocks)}",
        f"prefix hits {_share(increase('num_prefix_hit_tokens'), increase('num_prompt_tokens'))}",
        f"image hits {_share(increase('num_image_hits'), increase('num_image_lookups'))}",
        f"prefill {rate('num_prefill_tokens')}",
        f"decode {rate('num_generated_tokens')}",
    ]
    if drafted := increase("num_draft_tokens"):
        parts.append(f"drafts held {_share(increase('num_accepted_tokens'), drafted)}")
    if preemptions := increase("num_preemptions"):
        parts.append(f"preempted {preemptions}")
    return ", ".join(parts)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"
