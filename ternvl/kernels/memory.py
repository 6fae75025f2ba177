"""Memory in huge pages, where the system has them: what is read from end to end comes faster without table walks."""

from __future__ import annotations

import mmap
from contextlib import suppress

import torch
from torch import Tensor


def huge_pages(num_bytes: int) -> Tensor:
    """Bytes [num_bytes], at a multiple of 64, all 0. Raises OSError where the memory cannot be had."""
    memory = mmap.mmap(-1, max(1, num_bytes))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them has ordinary pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)[:num_bytes]
