"""The limits that a container sets for its processes: the processors' time and the memory of their cgroup."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_UNLIMITED = 2**60
"""Version 1 writes a number near 2^63 where there is no limit."""


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
        texts = [_read(folder / "memory.max") for folder in self._folders("")]
        texts += [_read(folder / "memory.limit_in_bytes") for folder in self._folders("memory")]
        return min((int(text) for text in texts if text.isdigit() and int(text) < _UNLIMITED), default=None)

    def free_memory(self) -> int | None:
        """Return the bytes that are left of `memory`, without caches that can be dropped; None if there is no limit."""
        limit = self.memory()
        if limit is None:
            return None
        for folder, name in self._pairs():
            used = _read(folder / name)
            if used.isdigit():
                return max(0, limit - int(used) + _droppable(folder))
        return limit

    def _pairs(self) -> Iterator[tuple[Path, str]]:
        yield from ((folder, "memory.current") for folder in self._folders(""))
        yield from ((folder, "memory.usage_in_bytes") for folder in self._folders("memory"))

    def _folders(self, controller: str) -> Iterator[Path]:
        """Yield the folder of the group and those above it; `controller` is empty for version 2."""
        base = self.root / controller
        for line in _read(self.process).splitlines():
            _, _, rest = line.partition(":")
            names, _, path = rest.partition(":")
            if controller in names.split(","):
                folder = base / path.lstrip("/")
                while folder != base and base in folder.parents:
                    yield folder
                    folder = folder.parent
        yield base


def _read(path: Path) -> str:
    with suppress(OSError, ValueError):
        return path.read_text().strip()
    return ""


def _ratio(limit: str, period: str) -> float | None:
    return int(limit) / int(period) if limit.isdigit() and period.isdigit() and int(period) else None


def _droppable(folder: Path) -> int:
    """Return the bytes of cached files that nobody has used lately."""
    for line in _read(folder / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file") and value.isdigit():
            return int(value)
    return 0
