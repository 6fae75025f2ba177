"""A control group of this machine, with limits of memory and processors, for one program: version 1 or 2."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self

_ROOT = Path("/sys/fs/cgroup")
_PERIOD = 100_000


class Limits:
    """Limits for the processes that enter them. Without a limit, nothing is made."""

    def __init__(self, memory: int | None, cpus: float | None) -> None:
        """`memory` is in bytes, `cpus` in processors."""
        self._is_v2 = (_ROOT / "cgroup.controllers").exists()
        self._folders: list[Path] = []
        if memory is not None:
            self._set("memory", {"memory.max" if self._is_v2 else "memory.limit_in_bytes": str(memory)})
            self._memory = self._folders[-1]
        if cpus is not None:
            quota = str(int(cpus * _PERIOD))
            v1 = {"cpu.cfs_period_us": str(_PERIOD), "cpu.cfs_quota_us": quota}
            self._set("cpu", {"cpu.max": f"{quota} {_PERIOD}"} if self._is_v2 else v1)
        self._has_memory = memory is not None

    def _set(self, controller: str, values: dict[str, str]) -> None:
        folder = (_ROOT if self._is_v2 else _ROOT / controller) / f"container-steps-{os.getpid()}"
        folder.mkdir(exist_ok=True)
        for name, value in values.items():
            (folder / name).write_text(value)
        if folder not in self._folders:
            self._folders.append(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for folder in self._folders:
            for path in [folder / "cgroup.procs"] if kind else []:
                for process in path.read_text().split():
                    os.kill(int(process), 9)
            folder.rmdir()

    def enter(self) -> None:
        """Put this process under the limits."""
        for folder in self._folders:
            (folder / "cgroup.procs").write_text("0" if self._is_v2 else str(os.getpid()))

    def killed(self) -> int:
        """Return the number of processes that were killed for memory."""
        if not self._has_memory:
            return 0
        text = (self._memory / ("memory.events" if self._is_v2 else "memory.oom_control")).read_text()
        return int(dict(line.split() for line in text.splitlines()).get("oom_kill", 0))

    def report(self) -> str:
        """Return the most memory that was used, in words; nothing without a limit."""
        if not self._has_memory:
            return ""
        name = "memory.peak" if self._is_v2 else "memory.max_usage_in_bytes"
        peak = int((self._memory / name).read_text()) / 1e6
        return f", at most {peak:.0f} MB with cached files, {self.killed()} killed"
