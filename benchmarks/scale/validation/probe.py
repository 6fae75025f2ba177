"""The share of a processor that servers get, as Linux' scheduler counts it.

`/proc/PID/task/TID/schedstat` has the nanoseconds for which a thread ran, and for which it could have run and waited
for a processor. A probe reads both while a load is measured. The simulation of that load then works as much slower as
the machine was: what others take of the machine cannot be predicted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from benchmarks.scale.pace import Pace

EVERY = 0.05
"""Seconds between two samples."""
LEAST = 0.0005
"""Seconds that a thread must want to work in a sample, else the sample says nothing and the last one holds."""


@dataclass(frozen=True, slots=True)
class Paces:
    """The paces of a server: of its engine, whose thread runs for longest, and of HTTP, which the main thread does."""

    engine: Pace
    http: Pace


class Probe:
    """Samples the engines of some servers, from entering the context to leaving it."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._files = [[task / "schedstat" for task in Path(f"/proc/{pid}/task").iterdir()] for pid in pids]
        self._samples: list[tuple[float, list[list[tuple[int, int]]]]] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Probe:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        while True:
            self._samples.append((time.monotonic(), [[_schedstat(file) for file in files] for files in self._files]))
            if self._end.wait(EVERY):
                return

    def paces(self, began: float) -> list[Paces]:
        """Return the paces of each server, in seconds since `began` of the monotonic clock."""
        times = [at - began for at, _ in self._samples]
        found = []
        for server, files in enumerate(self._files):
            first, end = self._samples[0][1][server], self._samples[-1][1][server]
            engine = max(range(len(first)), key=lambda each: end[each][0] - first[each][0])
            main = next(index for index, file in enumerate(files) if file.parent.name == file.parents[2].name)
            found.append(Paces(*(Pace(times, self._shares(server, thread)) for thread in (engine, main))))
        return found

    def _shares(self, server: int, thread: int) -> list[float]:
        """Return the share of a thread in each sample."""
        shares, last = list[float](), 1.0
        for (_, before), (_, after) in pairwise(self._samples):
            old, new = before[server][thread], after[server][thread]
            ran, waited = (new[0] - old[0]) / 1e9, (new[1] - old[1]) / 1e9
            if ran + waited >= LEAST:
                last = max(0.02, ran / (ran + waited))
            shares.append(last)
        return shares


def _schedstat(file: Path) -> tuple[int, int]:
    """Return the nanoseconds that a thread ran and waited."""
    try:
        ran, waited, _ = file.read_text().split()
    except (OSError, ValueError):  # it has ended, or this is not Linux
        return 0, 0
    return int(ran), int(waited)
