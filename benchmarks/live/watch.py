"""Watches the memory of a server while it works, and judges whether it grows."""

from __future__ import annotations

import statistics
import threading
import time

from benchmarks.live.server import Server

MIB = 2**20
EVERY = 2.0
"""Seconds between two looks."""


class Watch:
    """Samples the memory of a server, from entering the context to leaving it."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._began = 0.0
        self.samples: list[tuple[float, int]] = []
        """Seconds since the beginning, and bytes."""

    def __enter__(self) -> Watch:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._end.wait(EVERY):
            self.samples.append((time.monotonic() - self._began, self._server.memory()))

    def growth(self, warm_up: float) -> float:
        """Return by which share memory has grown, from after a warm-up of so many seconds to the end.

        Medians of a tenth of the time are compared, because image workers come and go.
        """
        kept = [(at, size) for at, size in self.samples if at >= warm_up]
        if len(kept) < 2:
            return 0.0
        part = max(1, len(kept) // 10)
        first, last = (statistics.median(size for _, size in some) for some in (kept[:part], kept[-part:]))
        return last / first - 1

    def line(self) -> list[tuple[float, float]]:
        """Return minutes and MiB."""
        return [(at / 60, size / MIB) for at, size in self.samples]


def percentile(values: list[float], share: float) -> float:
    """Return the smallest value that is not below `share` of the values; 0 without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
