"""The stacks of all threads as names of functions: never values of variables, which may be what clients sent."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import NamedTuple

_MOST_FRAMES = 128
"""The most frames of a stack that are read, the innermost."""

WAITING = "[waiting]"
"""The innermost frame of a thread that waits for work, a lock or another thread."""

_WAITS = frozenset(
    {
        "asyncio.runners:Runner.run",  # the event loop, in C, if no callback runs
        "concurrent.futures.thread:_worker",
        "multiprocessing.connection:wait",
        "queue:Queue.get",
        "selectors:EpollSelector.select",
        "selectors:KqueueSelector.select",
        "selectors:PollSelector.select",
        "selectors:SelectSelector.select",
        "ternvl.engine.loop:Loop._take_order",
        "threading:Condition.wait",
        "threading:Thread._wait_for_tstate_lock",
        "threading:Thread.join",
        "uvicorn._compat:asyncio_run",
    }
)
"""Functions that do nothing but wait if they are innermost."""


class Function(NamedTuple):
    """A function on a stack."""

    module: str
    name: str
    line: int
    """Its first line."""

    @property
    def label(self) -> str:
        """The module and the name, in characters that the forms of profiles allow."""
        return f"{self.module}:{self.name}".replace(";", ",").replace(" ", "_").replace("\n", "_")

    @property
    def waits(self) -> bool:
        return self.label in _WAITS


class Stacks:
    """Reads the stacks of the other threads, as often as it is asked. It keeps no frame, so no value lives longer."""

    def __init__(self) -> None:
        self._functions: dict[CodeType, Function] = {}

    def read(self) -> Iterator[tuple[int, list[Function], int]]:
        """Yield the identifier of each thread but the one that reads, its functions, and the line that it is at.

        The innermost function is the first.
        """
        own = threading.get_ident()
        for ident, frame in sys._current_frames().items():
            if ident != own:
                yield ident, list(self._walk(frame)), frame.f_lineno or 0

    def _walk(self, innermost: FrameType) -> Iterator[Function]:
        frame: FrameType | None = innermost
        for _ in range(_MOST_FRAMES):
            if frame is None:
                return
            yield self._function(frame)
            frame = frame.f_back

    def _function(self, frame: FrameType) -> Function:
        code = frame.f_code
        if code not in self._functions:
            module = str(frame.f_globals.get("__name__", "?"))
            self._functions[code] = Function(module, code.co_qualname, code.co_firstlineno)
        return self._functions[code]


def thread_names() -> dict[int, str]:
    """Return the name of each thread of Python by its identifier."""
    return {thread.ident: thread.name for thread in threading.enumerate() if thread.ident is not None}
