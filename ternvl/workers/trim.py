"""Returns freed memory to the system, in the server and in its worker processes."""

from __future__ import annotations

import ctypes
import select
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO

_M_ARENA_MAX = -8
"""The parameter of mallopt in GNU's malloc.h."""


def trim() -> None:
    """Return freed memory to the system. Does nothing with a C library other than GNU's.

    GNU's keeps the freed pieces that lie between used ones: a busy server would grow by about a tenth in its first
    minutes. Every thread waits meanwhile that allocates from the part that is being walked.
    """
    if sys.platform == "linux":
        with suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def share_arena() -> None:
    """Let all threads that start from now on allocate from one arena of GNU's C library. Call it before they start.

    Otherwise there are up to eight arenas for each processor, each with pieces of its own that are free but cannot be
    returned: a busy server grew by 6 MB in four minutes, all of it there. Threads of Python allocate in turn anyway.
    """
    if sys.platform == "linux":
        with suppress(AttributeError):
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def trim_while_idle(jobs: BinaryIO, seconds: float = 1.0) -> None:
    """Wait for a worker's next job, and call `trim` if none has come in so many seconds.

    Otherwise each worker would keep what its largest image needed. To trim after every image would make the next one
    slower by the time in which the system finds its memory again, about a millisecond for a tile.
    """
    if sys.platform == "linux" and not select.select([jobs], [], [], seconds)[0]:
        trim()


class Trimmer:
    """Calls `trim` at most once in so many seconds."""

    def __init__(self, seconds: float = 5.0, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns seconds."""
        self._seconds, self._clock = seconds, clock
        self._next = clock() + seconds

    def __call__(self) -> None:
        """Trim, if the time has come."""
        if self._clock() >= self._next:
            trim()
            self._next = self._clock() + self._seconds
