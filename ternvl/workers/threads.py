"""Threads under limits of the system, which may refuse another one at any time: of processes, or of memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from contextvars import copy_context
from threading import Event, Thread
from typing import TypeVar

from ternvl.errors import UnavailableError

_NO_THREAD = "The system allows the server no further thread: its limit of processes or of memory is reached."

_T = TypeVar("_T", bound=Thread)
_A = TypeVar("_A")
_B = TypeVar("_B")


def started(thread: _T) -> _T:
    """Start a thread and return it. Raises UnavailableError if the system refuses it."""
    try:
        thread.start()
    except RuntimeError as error:
        raise UnavailableError(_NO_THREAD) from error
    return thread


def can_start(number: int) -> bool:
    """Return whether the system allows so many further threads at this moment."""
    end, threads = Event(), list[Thread]()
    try:
        for _ in range(number):
            threads.append(started(Thread(target=end.wait)))
    except UnavailableError:
        return False
    finally:
        end.set()
        for thread in threads:
            thread.join()
    return True


class LastingThreads(ThreadPoolExecutor):
    """A pool whose first thread is started at once, and which goes on with those that it has if it gets no more."""

    def __init__(self, size: int, name: str) -> None:
        """Raises UnavailableError if the system refuses the first thread."""
        super().__init__(size, thread_name_prefix=name)
        try:
            self.submit(int).result()
        except RuntimeError as error:
            raise UnavailableError(_NO_THREAD) from error

    def _adjust_thread_count(self) -> None:
        """Start another thread if all are busy. Whatever is submitted is in the queue already, so a failure may pass.

        This extends a method of the standard library that is not public; `tests/workers/test_threads.py` checks it.
        """
        if not self._threads:
            super()._adjust_thread_count()
            return
        with suppress(RuntimeError):
            super()._adjust_thread_count()


def in_parallel(work: Callable[[_A], _B], items: Sequence[_A], most: int, name: str) -> list[_B]:
    """Return what `work` makes of each item, on up to `most` threads in this context, or here if there is no thread."""
    try:
        threads = LastingThreads(most, name) if len(items) > 1 else None
    except UnavailableError:
        threads = None
    with threads or nullcontext():
        run = threads.map if threads else map
        return list(run(lambda context, item: context.run(work, item), [copy_context() for _ in items], items))
