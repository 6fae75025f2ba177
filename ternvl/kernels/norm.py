"""Root-mean-square norm of rows: native where possible, otherwise in plain torch.

Shapes: M rows, K elements of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ternvl.kernels.loader import Float, Int, Int64, Pointer, library


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [M, K] and weight [K], float32 -> [M, K]. The bits of a row depend on that row alone."""
    loaded = library() if x.is_cpu and x.dtype == weight.dtype == torch.float32 else None
    if loaded is None:
        return rms_norm_reference(x, weight, eps)
    x, out = x.contiguous(), torch.empty(x.shape)
    function = loaded.function("ternvl_rms_norm", Pointer, Int64, Int64, Pointer, Float, Pointer, Int)
    function(x.data_ptr(), *x.shape, weight.data_ptr(), eps, out.data_ptr(), torch.get_num_threads())
    return out


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`rms_norm` in plain torch."""
    return weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps))
