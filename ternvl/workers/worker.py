"""A process that does one job after another for this one, and is killed when it breaks a rule.

It sends an empty line once it is ready. A job is bytes; its answer begins with a line of JSON. What it sends is not
trusted: a job that takes it over can give wrong answers, but nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from subprocess import Popen, TimeoutExpired
from threading import Event, Timer
from typing import IO, Any, TypeVar

from ternvl.workers.threads import started

_MAX_JOBS = 1_000
"""The jobs after which a worker is replaced, so that nothing that leaks in a library adds up."""

_LONGEST_LINE = 10_000

_T = TypeVar("_T")


class LostError(Exception):
    """A worker that ended, took too long, or sent what is no answer. It is not usable any more."""

    def __init__(self, status: int, *, is_late: bool) -> None:
        super().__init__(status)
        self.status = status
        """The exit status: negative for a signal, and 0 if the process did not end by itself."""
        self.is_late = is_late
        """Whether it was killed because its time was over."""


class Worker:
    """A worker process, for one job at a time."""

    def __init__(self, process: Popen[bytes], max_seconds: float) -> None:
        """`process` has pipes as input and output. `max_seconds` is the longest that a job may take."""
        self._process = process
        self._max_seconds = max_seconds
        self._num_jobs = 0
        self._was_killed = False

    @property
    def is_usable(self) -> bool:
        """Whether it can do another job."""
        return not self._was_killed and self._num_jobs < _MAX_JOBS and self._process.poll() is None

    @property
    def state(self) -> dict[str, Any]:
        """The id of its process, and the number of jobs that it has had."""
        return {"pid": self._process.pid, "jobs": self._num_jobs}

    def kill(self) -> None:
        """Kill the process, also while it works."""
        self._was_killed = True
        self._process.kill()

    def end(self) -> None:
        """Kill the process and wait for its end."""
        self.kill()
        with suppress(BrokenPipeError), self._process:
            pass  # closes its pipes and waits for it

    def introduce(self, preface: bytes) -> None:
        """Send what a new worker reads before it is ready. If it has ended, its first job shows that."""
        with suppress(OSError):
            self._pipes()[0].write(preface)
            self._pipes()[0].flush()

    def run(self, job: Iterable[bytes], read: Callable[[dict[str, Any], IO[bytes]], _T]) -> _T:
        """Send a job and return what `read` makes of the answer's line and of what comes after it.

        Raises LostError, also if `read` raises ValueError, KeyError, TypeError or OSError, and UnavailableError if the
        system allows no thread for the clock.
        """
        self._num_jobs += 1
        is_late = Event()
        try:
            if self._num_jobs == 1 and self._pipes()[1].readline(2) != b"\n":
                raise ValueError("not ready")
            with self._limited(is_late):
                return self._exchange(job, read)
        except (OSError, ValueError, KeyError, TypeError):
            status = self._status()
            self.end()
            raise LostError(status, is_late=is_late.is_set()) from None

    @contextmanager
    def _limited(self, is_late: Event) -> Iterator[None]:
        """Kill the process after its time, and set the event if that happens."""
        timer = started(Timer(self._max_seconds, self._expire, [is_late]))
        try:
            yield
        finally:
            timer.cancel()
            timer.join()

    def _expire(self, is_late: Event) -> None:
        is_late.set()
        self.kill()

    def _exchange(self, job: Iterable[bytes], read: Callable[[dict[str, Any], IO[bytes]], _T]) -> _T:
        stdin, stdout = self._pipes()
        for piece in job:
            stdin.write(piece)
        stdin.flush()
        return read(dict(json.loads(stdout.readline(_LONGEST_LINE))), stdout)

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout

    def _status(self) -> int:
        """Return the exit status of a process that has closed its output; 0 if it still runs."""
        try:
            return self._process.wait(1)
        except TimeoutExpired:
            return 0
