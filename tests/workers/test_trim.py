"""Freed memory is returned to the system, now and then."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ternvl.workers.trim import trim_while_idle


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux how much memory the process has")
def test_freed_memory_between_used_pieces_is_returned() -> None:
    code = """
from pathlib import Path
from ternvl.workers.trim import Trimmer
def size():
    rows = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(row.split()[1]) // 1024 for row in rows if row.startswith("Anonymous:"))
now = 0.0
trim = Trimmer(10.0, lambda: now)
pieces = [bytes(100_000) for _ in range(2_000)]
filled = size()
pieces[:-1] = [b""] * (len(pieces) - 1)
now = 9.0
trim()
early = size()
now = 10.0
trim()
print(filled, early, size())
"""
    filled, early, late = map(int, subprocess.check_output([sys.executable, "-c", code]).split())
    assert filled - early < 20
    assert filled - late > 100


@pytest.mark.skipif(sys.platform != "linux", reason="trims with the C library of Linux alone")
def test_a_worker_trims_once_it_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    trims: list[bool] = []
    monkeypatch.setattr("ternvl.workers.trim.trim", lambda: trims.append(True))
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as jobs, os.fdopen(writing, "wb", buffering=0) as client:
        trim_while_idle(jobs, 0.01)
        assert trims == [True]
        client.write(b"a job")
        trim_while_idle(jobs, 60.0)
    assert trims == [True]
