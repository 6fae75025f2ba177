"""What a drill takes from a server before it starts: rights, and space on a disk (Linux)."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.faults.drill import SkippedError

_OVERRIDE = 1, 2  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, by which root ignores permissions
_DROP, _NEW_MOUNTS, _RECURSIVE, _PRIVATE = 24, 0x20000, 0x4000, 0x40000
_KEEP, _AMBIENT, _RAISE, _VERSION = 8, 47, 2, 0x20080522  # of prctl and capset
_USER = 61_234
"""A user id that nobody has."""
_libc = ctypes.CDLL(None, use_errno=True)


def without_override() -> None:
    """Let permissions of files also hold for root; for `preexec_fn`."""
    if os.geteuid() == 0:
        for capability in _OVERRIDE:
            _libc.prctl(_DROP, capability, 0, 0, 0)


def without_exemption() -> None:
    """Become a user whose processes and threads are limited, if this is root, which is exempt; for `preexec_fn`.

    The user keeps the right to read all files, because an interpreter may lie in root's home.
    """
    if os.geteuid():
        return
    _check(_libc.prctl(_KEEP, 1, 0, 0, 0))
    os.setresgid(_USER, _USER, _USER)
    os.setresuid(_USER, _USER, _USER)
    read, rights = 1 << _OVERRIDE[0] | 1 << _OVERRIDE[1], (ctypes.c_uint32 * 6)()
    rights[0] = rights[1] = rights[2] = read  # effective, permitted, inheritable
    _check(_libc.capset((ctypes.c_uint32 * 2)(_VERSION, 0), rights))
    for capability in _OVERRIDE:
        _check(_libc.prctl(_AMBIENT, _RAISE, capability, 0, 0))


@contextmanager
def in_small_disk(folder: Path) -> Iterator[Callable[[], None]]:
    """Yield a function for `preexec_fn` that gives a process, and it alone, a disk of 1 MB at `folder`.

    Raises SkippedError without the right to mount.
    """
    mount = partial(_mount, os.fsencode(folder))
    try:
        subprocess.run(["true"], preexec_fn=mount, check=True)
    except subprocess.SubprocessError:
        raise SkippedError("only root may mount a small disk") from None
    yield mount


def _mount(folder: bytes) -> None:
    _check(_libc.unshare(_NEW_MOUNTS))
    _check(_libc.mount(None, b"/", None, _RECURSIVE | _PRIVATE, None))
    _check(_libc.mount(b"tmpfs", folder, b"tmpfs", 0, b"size=1m"))


def _check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
