"""Predicts for how long a further request would wait, from the work before it and from what steps took lately.

A step takes a constant time, and more for each token of a prompt, each tile and each token of an answer. These four
rates are fitted to the latest steps. How long answers are is the mean of the latest ones. Nothing is predicted before
a step and an answer have ended.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from threading import Lock

import numpy as np

from ternvl.engine.admission.backlog import Backlog
from ternvl.engine.stats import EngineStats

_WINDOW = 64
"""The steps of each kind, and the answers, that count."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What a step takes, in seconds."""

    step: float = 0.0
    """Whatever it computes."""
    prompt_token: float = 0.0
    tile: float = 0.0
    answer_token: float = 0.0


@dataclass(frozen=True, slots=True)
class _Step:
    """What a step has computed, and the seconds that it took."""

    prompt_tokens: int
    tiles: int
    answer_tokens: int
    accepted: int
    """The tokens of answers that speculation guessed."""
    seconds: float

    @property
    def kind(self) -> tuple[bool, bool]:
        """Whether it had tokens of prompts, and tiles."""
        return self.prompt_tokens > 0, self.tiles > 0


class Forecast:
    """What steps took lately, and how long answers were. Any thread may call its methods."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._steps: dict[tuple[bool, bool], deque[_Step]] = {}  # by kind, so that none is forgotten for another
        self._lengths: deque[int] = deque(maxlen=_WINDOW)
        self._rates: Rates | None = None  # of the steps, unless there were further ones

    def learn(self, before: EngineStats, after: EngineStats, seconds: float) -> None:
        """Record a step by the engine's counters before and after it. A step that failed teaches nothing."""
        if after.num_steps != before.num_steps + 1:
            return
        step = _Step(
            after.num_prefill_tokens - before.num_prefill_tokens,
            after.num_encoded_tiles - before.num_encoded_tiles,
            after.num_generated_tokens - before.num_generated_tokens,
            after.num_accepted_tokens - before.num_accepted_tokens,
            max(seconds, 1e-6),
        )
        with self._lock:
            self._steps.setdefault(step.kind, deque(maxlen=_WINDOW)).append(step)
            self._rates = None

    def end(self, num_tokens: int) -> None:
        """Record that an answer has ended, with so many tokens."""
        with self._lock:
            self._lengths.append(num_tokens)

    def rates(self) -> Rates:
        """Return what the latest steps took."""
        with self._lock:
            if self._rates is None:
                self._rates = _fit([step for steps in self._steps.values() for step in steps])
            return self._rates

    def wait(self, backlog: Backlog) -> float | None:
        """Return the seconds after which a further request would first run; None if nothing is known yet."""
        with self._lock:
            lengths, steps = tuple(self._lengths), [step for kind in self._steps.values() for step in kind]
        if not lengths or not steps:
            return None
        rates = self.rates()
        num_tokens = _tokens_until_free(backlog, max(1.0, sum(lengths) / len(lengths)))
        num_steps = max(num_tokens / _tokens_of_a_step(steps), backlog.num_steps)
        num_running = min(backlog.num_slots, len(backlog.running) + len(backlog.waiting))
        return (
            num_steps * rates.step
            + num_tokens * num_running * rates.answer_token
            + backlog.num_tokens * rates.prompt_token
            + backlog.num_tiles * rates.tile
        )


def _tokens_until_free(backlog: Backlog, mean: float) -> float:
    """Return after how many tokens of each running answer a further one may run.

    Those that wait are taken to be as long as answers are on average, and no longer than they may be.
    """
    ends = [min(most, max(mean, drawn + 1)) - drawn for drawn, most in backlog.running]
    heapify(ends)
    now = 0.0
    for most in backlog.waiting:
        if len(ends) >= backlog.num_slots:
            now = heappop(ends)
        heappush(ends, now + min(most, mean))
    return heappop(ends) if len(ends) >= backlog.num_slots else now


def _tokens_of_a_step(steps: Iterable[_Step]) -> float:
    """Return how many tokens a step gives an answer: more than one where drafts hold."""
    drawn = sum(step.answer_tokens for step in steps)
    return drawn / max(1, drawn - sum(step.accepted for step in steps)) if drawn else 1.0


def _fit(steps: list[_Step]) -> Rates:
    """Return the rates, none below 0, with the least relative errors, so that one slow step counts little."""
    counts = np.array([[1, step.prompt_tokens, step.tiles, step.answer_tokens] for step in steps], float)
    rows = counts / np.array([[step.seconds] for step in steps])
    rates, used = np.zeros(4), rows.any(axis=0)
    while used.any():
        rates[used] = np.linalg.lstsq(rows[:, used], np.ones(len(steps)), rcond=None)[0]
        if rates.min() >= 0:
            break
        lowest = int(rates.argmin())
        used[lowest], rates[:] = False, 0
    return Rates(*map(float, rates))
