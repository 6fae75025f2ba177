"""Rotary positions in place: native where possible, otherwise in plain torch, with the same bits.

Shapes: T tokens, H heads, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ternvl.kernels.loader import Int, Int64, Pointer, library


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotate the halves of each head of x [T, H, D], whose tokens may be apart, by cos and sin [T, 1, D]."""
    loaded = library() if x.is_cpu and x.dtype == cos.dtype == torch.float32 else None
    if loaded is None or x.stride()[1:] != (x.shape[2], 1):
        return rotate_reference(x, cos, sin)
    num_tokens, heads, size = x.shape
    function = loaded.function("ternvl_rotate", Pointer, Int64, Pointer, Pointer, Int64, Int, Int, Int)
    angles = (cos.contiguous(), sin.contiguous())
    threads = torch.get_num_threads()
    function(x.data_ptr(), x.stride(0), *(each.data_ptr() for each in angles), num_tokens, heads, size, threads)
    return None


def rotate_reference(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """`rotate` in plain torch."""
    first, second = x.chunk(2, dim=-1)
    x.copy_(x * cos + torch.cat([-second, first], dim=-1) * sin)
