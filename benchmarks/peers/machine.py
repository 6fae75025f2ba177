"""Describes the machine of the measurements."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

_FAMILY = ("cpu family", "model")
"""Fields that tell processors of one name apart: AMD EPYC of family 25 is Zen 3 or 4, of family 26 Zen 5."""


def describe() -> dict[str, Any]:
    """Return the processor, its instruction sets that matter here, and the memory."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = set(fields.get("flags", "").split())
    return {
        "cpu": fields.get("model name", platform.processor() or platform.machine()),
        "family": ", ".join(f"{name.split()[-1]} {fields[name]}" for name in _FAMILY if name in fields),
        "num_cpus": len(os.sched_getaffinity(0)),
        "instructions": sorted(flags & {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8"}),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def available_bytes() -> int:
    """Return the bytes of memory that are available; a huge number if the kernel does not report them."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return sys.maxsize
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), sys.maxsize)


def load_average() -> float:
    """Return the mean number of processes that needed a CPU in the last minute."""
    return os.getloadavg()[0]
