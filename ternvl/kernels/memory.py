"""Memory in huge pages, where the system has them: what is read from end to end comes faster without table walks."""

from __future__ import annotations

import atexit
import ctypes
import mmap
import sys
import threading
import weakref

import torch
from torch import Tensor

_HUGEPAGE, _COLLAPSE = 14, 25
"""Of Linux's madvise: pages may become huge, and they do now (since 6.1)."""
_AT_ONCE = 2**24
"""Bytes whose pages are replaced at a time: whoever reads them waits as long."""
_SETTLED = 2.0
"""Seconds after which a start is over."""


def allocate(num_bytes: int) -> Tensor:
    """Bytes [num_bytes], at a multiple of 64, all 0, in ordinary pages: filling huge ones takes longer where a virtual
    machine's host has to find them. Raises OSError where the memory cannot be had."""
    size = max(1, num_bytes)
    # Memory that is shared, the default, counts as a file: most systems have no huge pages for these.
    private = {} if sys.platform == "win32" else {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
    return torch.frombuffer(mmap.mmap(-1, size, **private), dtype=torch.uint8)[:num_bytes]


def make_huge(memory: Tensor) -> None:
    """Put what `allocate` gave, filled, into huge pages; its contents and its address stay. Where the system cannot, it
    goes on as it is."""
    if sys.platform != "linux":
        return
    madvise = ctypes.CDLL(None).madvise  # unlike that of `mmap` it lets other threads run
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    start, end = memory.data_ptr(), memory.data_ptr() + memory.nbytes
    madvise(start, memory.nbytes, _HUGEPAGE)
    for address in range(-(-start // _AT_ONCE) * _AT_ONCE - _AT_ONCE, end, _AT_ONCE):
        first = max(start, address)
        madvise(first, min(end, address + _AT_ONCE) - first, _COLLAPSE)


def make_huge_later(memory: Tensor) -> None:
    """`make_huge` in a thread of its own, once a start is over."""
    timer = threading.Timer(_SETTLED, make_huge, (memory,))
    timer.daemon = True
    timer.start()
    atexit.register(_end, weakref.ref(timer))


def _end(reference: weakref.ref[threading.Timer]) -> None:
    """Before Python ends, since it would end a thread in the midst of whatever it calls."""
    timer = reference()
    if timer is not None:
        timer.cancel()
        timer.join()
