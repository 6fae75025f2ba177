"""When the stages of a request began and ended, for traces. Nothing is noted unless somebody asks for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

Value = str | int | float | bool
"""What a trace may say of a stage. Never a prompt, an answer, an address or a key."""

MOST_STAGES = 128
"""The most stages of a request that are noted. Further ones are only counted."""


@dataclass(frozen=True, slots=True)
class StageTime:
    """A part of a request's work. Times are of `perf_counter`."""

    name: str
    began: float
    ended: float
    facts: dict[str, Value] = field(default_factory=dict)
    error: str = ""
    """The name of the exception that ended it; empty if none did."""


@dataclass(slots=True)
class Timeline:
    """The stages of one request, and facts about the whole of it. Any thread may add to it."""

    facts: dict[str, Value] = field(default_factory=dict)
    stages: list[StageTime] = field(default_factory=list)
    num_dropped: int = 0

    def add(self, stage: StageTime) -> None:
        """Note a stage that has ended."""
        if len(self.stages) < MOST_STAGES:
            self.stages.append(stage)
        else:
            self.num_dropped += 1


current: ContextVar[Timeline | None] = ContextVar("timeline", default=None)
"""The timeline of the request that is being answered; None if nobody wants one."""


@contextmanager
def stage(name: str, **facts: Value) -> Iterator[dict[str, Value]]:
    """Note what happens in this context as a stage of the current request, if its timeline is wanted.

    The context's value takes further facts.
    """
    timeline = current.get()
    if timeline is None:
        yield facts
        return
    began, error = time.perf_counter(), ""
    try:
        yield facts
    except BaseException as failure:
        error = type(failure).__name__
        raise
    finally:
        timeline.add(StageTime(name, began, time.perf_counter(), facts, error))
