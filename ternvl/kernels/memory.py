"""Memory in huge pages, where the system has them: reading it from end to end needs fewer page-table walks."""

from __future__ import annotations

import atexit
import ctypes
import mmap
import sys
import threading
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ternvl.workers.trim import trim

_DONTNEED, _HUGEPAGE, _COLLAPSE = 4, 14, 25
"""Advice to Linux's madvise: pages are not needed, may become huge, and become huge now (since Linux 6.1)."""
_AT_ONCE = 2**24
"""Bytes whose pages are replaced at a time. A thread that reads them waits until they are replaced."""
_SETTLED = 2.0
"""Seconds after which a program counts as started."""


def allocate(num_bytes: int) -> Tensor:
    """Return bytes [num_bytes], all 0, at an address that is a multiple of 64.

    They are in ordinary pages, because filling huge pages takes longer if the host of a virtual machine has to find
    them. Raises OSError if the memory cannot be allocated.
    """
    size = max(1, num_bytes)
    # Shared memory, the default, counts as a file, for which most systems have no huge pages.
    private = {} if sys.platform == "win32" else {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
    return torch.frombuffer(mmap.mmap(-1, size, **private), dtype=torch.uint8)[:num_bytes]


def make_huge(memory: Tensor) -> None:
    """Move filled memory of `allocate` into huge pages. Its contents and its address stay the same.

    If the system has no huge pages, the memory stays as it is.
    """
    if sys.platform != "linux":
        return
    madvise = _madvise()
    start, end = memory.data_ptr(), memory.data_ptr() + memory.nbytes
    madvise(start, memory.nbytes, _HUGEPAGE)
    for address in range(-(-start // _AT_ONCE) * _AT_ONCE - _AT_ONCE, end, _AT_ONCE):
        first = max(start, address)
        madvise(first, min(end, address + _AT_ONCE) - first, _COLLAPSE)


def make_huge_later(memory: Tensor) -> None:
    """Call `make_huge` two seconds later in a thread of its own, when the program has started."""
    timer = threading.Timer(_SETTLED, make_huge, (memory,))
    timer.daemon = True
    timer.start()
    atexit.register(_end, weakref.ref(timer))


def give_back(tensors: Iterable[Tensor]) -> None:
    """Take the pages of tensors in mapped files, and of freed memory, out of this process, for tensors used no more.

    Whoever reads them still finds what the file has. Tensors that are in no file stay as they are.
    """
    if sys.platform != "linux":
        return
    files, madvise = _files(), _madvise()
    for tensor in tensors:
        start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        size = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - start
        if size > 0 and any(first <= start and start + size <= last for first, last in files):
            madvise(start, size, _DONTNEED)
    trim()


def _files() -> list[tuple[int, int]]:
    """The first and last addresses of the files that are mapped into this process."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, _, _, _, inode, *path = line.split()
        if inode != "0" and path and not path[0].startswith("/dev/"):
            first, last = addresses.split("-")
            found.append((int(first, 16), int(last, 16)))
    return found


def _madvise() -> Any:
    function = ctypes.CDLL(None).madvise  # unlike the method of `mmap`, it releases the GIL
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function


def _end(reference: weakref.ref[threading.Timer]) -> None:
    """Stop the timer before Python exits, which would otherwise end its thread within a call."""
    timer = reference()
    if timer is not None:
        timer.cancel()
        timer.join()
