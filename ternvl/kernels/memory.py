"""Memory in huge pages, where the system has them: what is read from end to end comes faster without table walks."""

from __future__ import annotations

import mmap
import sys
from contextlib import suppress

import torch
from torch import Tensor


def huge_pages(num_bytes: int) -> Tensor:
    """Bytes [num_bytes], at a multiple of 64, all 0. Raises OSError where the memory cannot be had."""
    size = max(1, num_bytes)
    if sys.platform == "win32":
        memory = mmap.mmap(-1, size)
    else:  # memory that is shared, the default, counts as a file: most systems have no huge pages for these
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them has ordinary pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)[:num_bytes]
