"""The processors of this machine: which ones share a core, and which ones this process runs on."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ternvl.errors import ConfigError

_MOST = 2**16
"""Linux numbers at most 8,192 processors; the bound keeps a mistyped range from filling the memory."""


@dataclass(frozen=True, slots=True)
class Processors:
    """The processors that the system describes. The path is a parameter for tests."""

    root: Path = Path("/sys/devices/system/cpu")

    def online(self) -> frozenset[int]:
        """Return the processors that exist and are switched on."""
        return parse(_read(self.root / "online")) or frozenset(range(os.cpu_count() or 1))

    def cores(self, processors: Iterable[int]) -> int:
        """Return how many physical cores these processors belong to: fewer than processors where cores have two each.

        A processor of which the system says nothing counts as a core of its own.
        """
        return len({self._siblings(each) for each in processors})

    def _siblings(self, processor: int) -> frozenset[int]:
        folder = self.root / f"cpu{processor}" / "topology"
        lists = (parse(_read(folder / name)) for name in ("core_cpus_list", "thread_siblings_list"))
        return next((found for found in lists if found), frozenset({processor}))


def usable() -> frozenset[int]:
    """Return the processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def usable_cores(processors: Processors | None = None) -> int:
    """Return the number of physical cores that this process may run on.

    Two threads that multiply matrices on one core take turns: the second one gains nothing.
    """
    return (processors or Processors()).cores(usable())


def parse(text: str) -> frozenset[int]:
    """Return the processors of a list such as "0,2-3", the form of Linux and taskset; none for any other text."""
    found: set[int] = set()
    for part in text.split(","):
        numbers = re.fullmatch(r"\s*(\d{1,5})(?:-(\d{1,5}))?\s*", part, re.ASCII)
        if numbers is None:
            return frozenset()
        first = int(numbers[1])
        last = int(numbers[2] or first)
        if last < first or last >= _MOST:
            return frozenset()
        found.update(range(first, last + 1))
    return frozenset(found)


def shown(processors: Iterable[int]) -> str:
    """Return processors as `parse` takes them, with ranges."""
    runs: list[list[int]] = []
    for each in sorted(processors):
        if runs and runs[-1][1] == each - 1:
            runs[-1][1] = each
        else:
            runs.append([each, each])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in runs)


def bind(affinity: str, processors: Processors | None = None) -> None:
    """Let this process, all its threads and the processes that it starts from now on run on these processors alone.

    `affinity` is a list such as "0,2-3". Raises ConfigError for any other text, for a processor that the machine does
    not have or that this process may not use, and on systems that cannot do it.
    """
    wanted = parse(affinity)
    if not wanted:
        raise ConfigError(f"cpu_affinity is {affinity!r}, but must be a list of processors such as 0,2-3.")
    if not hasattr(os, "sched_setaffinity"):
        raise ConfigError(f"cpu_affinity is {affinity!r}, but this system cannot bind a process to processors.")
    online = (processors or Processors()).online()
    for having, found in (("this machine has", online), ("this process may use", usable())):
        if missing := wanted - found:
            raise ConfigError(f"cpu_affinity names processor {min(missing)}, but {having} only {shown(found)}.")
    os.sched_setaffinity(0, wanted)
    for thread in _threads():
        with suppress(OSError):  # it has ended
            os.sched_setaffinity(thread, wanted)


def _threads() -> list[int]:
    """Return the system's numbers of this process's threads."""
    with suppress(OSError):
        return [int(path.name) for path in Path("/proc/self/task").iterdir()]
    return []


def _read(path: Path) -> str:
    with suppress(OSError, ValueError):
        return path.read_text().strip()
    return ""
