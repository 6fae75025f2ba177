"""Freed memory is returned to the system, now and then."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.skipif(sys.platform != "linux", reason="asks the C library of Linux for its arenas")
def test_threads_share_one_arena(tmp_path: Path) -> None:
    code = """
import ctypes, sys, threading
from ternvl.workers.trim import share_arena
if sys.argv[2] == "shared":
    share_arena()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
libc.malloc_info.argtypes, libc.fclose.argtypes = (ctypes.c_int, ctypes.c_void_p), (ctypes.c_void_p,)
together = threading.Barrier(8)
def allocate():
    together.wait()
    libc.malloc(5000)
    together.wait()
threads = [threading.Thread(target=allocate) for _ in range(8)]
for each in threads:
    each.start()
for each in threads:
    each.join()
file = libc.fopen(sys.argv[1].encode(), b"w")
libc.malloc_info(0, file)
libc.fclose(file)
"""
    arenas = {}
    for how in ("shared", "own"):
        path = tmp_path / how
        subprocess.run([sys.executable, "-c", code, str(path), how], check=True)
        arenas[how] = path.read_text().count("<heap nr=")
    assert arenas["shared"] == 1
    assert arenas["own"] > 1
