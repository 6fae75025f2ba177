"""Stops one thread of a process, as a debugger does, while its other threads run on (Linux, ptrace)."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.faults.drill import SkippedError
from benchmarks.live.server import Server

_SEIZE, _INTERRUPT, _DETACH = 0x4206, 0x4207, 17
_ALL_THREADS = 0x40000000  # __WALL


@contextmanager
def stopped(server: Server) -> Iterator[None]:
    """Stop the thread of a server that computes, while the context is open. Raises SkippedError if that is forbidden.

    A thread that is stopped while it has, or waits for, the interpreter's lock would stop all others. So this tries
    again until the thread is within a computation and /health is answered.
    """
    for _ in range(100):
        thread = _busiest(server.process.pid)
        _stop(thread)
        try:
            if _computes(server.process.pid, thread) and server.ask("/health", seconds=0.5).status:
                yield
                return
        finally:
            _ptrace(_DETACH, thread)
    raise SkippedError("the thread could not be stopped outside the interpreter's lock")


def _busiest(pid: int) -> int:
    """Return the thread that takes the most processor time, the main thread apart."""
    before = _times(pid)
    time.sleep(0.2)
    used = {thread: ticks - before.get(thread, 0) for thread, ticks in _times(pid).items() if thread != pid}
    return max(used, key=lambda thread: used[thread])


def _times(pid: int) -> dict[int, int]:
    found = {}
    for entry in Path(f"/proc/{pid}/task").iterdir():
        fields = (entry / "stat").read_text().rpartition(")")[2].split()
        found[int(entry.name)] = int(fields[11]) + int(fields[12])
    return found


def _computes(pid: int, thread: int) -> bool:
    """Return whether a stopped thread was outside of system calls, such as those that wait for a lock."""
    return Path(f"/proc/{pid}/task/{thread}/syscall").read_text().startswith("-1 ")


def _stop(thread: int) -> None:
    _ptrace(_SEIZE, thread)
    _ptrace(_INTERRUPT, thread)
    os.waitpid(thread, _ALL_THREADS)


def _ptrace(request: int, thread: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(request, thread, None, None):
        raise SkippedError(f"ptrace: {os.strerror(ctypes.get_errno())}")
