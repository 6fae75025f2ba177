"""The product with a packed matrix, and the exact GELU: native where possible, otherwise in plain torch.

Shapes: M rows, N outputs, K inputs; panels [ceil(N / 16), K, 16] as `panels.py` packs them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ternvl.kernels.loader import LINEAR, Int, Int64, Pointer, library
from ternvl.kernels.panels import unpack


def linear(x: Tensor, panels: Tensor, n: int, bias: Tensor | None = None) -> Tensor:
    """x [M, K] and bias [N] float32, panels of `n` outputs -> [M, N] float32.

    The bits of a row depend on that row alone.
    """
    loaded = library()
    if loaded is None:
        return linear_reference(x, panels, n, bias)
    m, k = x.shape
    x = x if x.stride(1) == 1 and x.stride(0) >= k else x.contiguous()
    out = x.new_empty(m, n)
    shift = None if bias is None else bias.data_ptr()
    size, threads = panels.itemsize, torch.get_num_threads()
    function = loaded.function("ternvl_linear", *LINEAR)
    function(x.data_ptr(), m, k, x.stride(0), panels.data_ptr(), size, n, shift, out.data_ptr(), threads)
    return out


def linear_reference(x: Tensor, panels: Tensor, n: int, bias: Tensor | None = None) -> Tensor:
    """`linear` in plain torch."""
    return F.linear(x, unpack(panels, n).to(x.dtype), bias)


def gelu(x: Tensor) -> Tensor:
    """Compute the exact GELU of x, float32, of any shape."""
    loaded = library()
    if loaded is None:
        return gelu_reference(x)
    x = x.contiguous()
    out = torch.empty_like(x)
    function = loaded.function("ternvl_gelu", Pointer, Pointer, Int64, Int)
    function(x.data_ptr(), out.data_ptr(), x.numel(), torch.get_num_threads())
    return out


def gelu_reference(x: Tensor) -> Tensor:
    """`gelu` in plain torch."""
    return F.gelu(x)
