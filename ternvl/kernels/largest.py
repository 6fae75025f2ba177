"""The largest element of each row and its position: native where possible, otherwise in plain torch.

Shapes: M rows, N elements of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ternvl.kernels.loader import Int, Int64, Pointer, library


def largest(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [M, N] float32 -> values [M] and indices [M] int64 of the largest elements, the first of equal ones.

    NaN counts as larger than every number.
    """
    loaded = library() if x.is_cpu and x.dtype == torch.float32 and x.stride(1) == 1 and x.numel() else None
    if loaded is None:
        return largest_reference(x)
    values, indices = torch.empty(len(x)), torch.empty(len(x), dtype=torch.int64)
    function = loaded.function("ternvl_largest", Pointer, Int64, Int64, Int64, Pointer, Pointer, Int)
    threads = torch.get_num_threads()
    function(x.data_ptr(), *x.shape, x.stride(0), values.data_ptr(), indices.data_ptr(), threads)
    return values, indices


def largest_reference(x: Tensor) -> tuple[Tensor, Tensor]:
    """`largest` in plain torch."""
    indices = x.argmax(dim=-1)
    return x.gather(1, indices[:, None]).squeeze(1), indices
