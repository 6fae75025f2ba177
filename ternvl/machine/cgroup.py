"""The limits that a container sets for its processes: the processors' time and the memory of their cgroup."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_UNLIMITED = 2**60
"""Version 1 writes a number near 2^63 where there is no limit."""

_MEMORY = (("", "memory.max", "memory.current"), ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"))
"""Of version 2 and 1: the controller, and the files of the limit and of the use."""


@dataclass(frozen=True, slots=True)
class Cgroup:
    """The control group of this process, in version 1 or 2. The paths are parameters for tests."""

    root: Path = Path("/sys/fs/cgroup")
    process: Path = Path("/proc/self/cgroup")

    def processors(self) -> float | None:
        """Return the processors that this process may use on average, such as 1.5; None if there is no limit."""
        found = []
        for folder in self._folders(""):
            limit, _, period = _read(folder / "cpu.max").partition(" ")
            found.append(_ratio(limit, period))
        for folder in self._folders("cpu"):
            found.append(_ratio(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")))
        return min((each for each in found if each is not None), default=None)

    def memory(self) -> int | None:
        """Return the bytes of memory that this process may use together with its group; None if there is no limit."""
        limits = [_bytes(folder / name) for controller, name, _ in _MEMORY for folder in self._folders(controller)]
        return min((each for each in limits if each is not None), default=None)

    def free_memory(self) -> int | None:
        """Return the bytes that are left of `memory`, without caches that can be dropped; None if there is no limit.

        Each group above this one has its own limit and its own use, to which other processes may add.
        """
        left = []
        for controller, limit_name, use_name in _MEMORY:
            for folder in self._folders(controller):
                limit, used = _bytes(folder / limit_name), _read(folder / use_name)
                if limit is not None:
                    left.append(max(0, limit - int(used) + _droppable(folder)) if used.isdigit() else limit)
        return min(left, default=None)

    def _folders(self, controller: str) -> Iterator[Path]:
        """Yield the folder of the group and those above it; `controller` is empty for version 2."""
        base = self.root / controller
        for line in _read(self.process).splitlines():
            _, _, rest = line.partition(":")
            names, _, path = rest.partition(":")
            if controller in names.split(",") and ".." not in path.split("/"):  # else outside of what is mounted
                folder = base / path.lstrip("/")
                while folder != base and base in folder.parents:
                    yield folder
                    folder = folder.parent
        yield base


def _read(path: Path) -> str:
    with suppress(OSError, ValueError):
        return path.read_text().strip()
    return ""


def _bytes(path: Path) -> int | None:
    """Return the limit in a file; None if there is none."""
    text = _read(path)
    return int(text) if text.isdigit() and int(text) < _UNLIMITED else None


def _ratio(limit: str, period: str) -> float | None:
    return int(limit) / int(period) if limit.isdigit() and period.isdigit() and int(period) else None


def _droppable(folder: Path) -> int:
    """Return the bytes of cached files that nobody has used lately."""
    for line in _read(folder / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file") and value.isdigit():
            return int(value)
    return 0
