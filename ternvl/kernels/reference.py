"""The kernels in plain torch: what they must agree with, and what serves where they cannot be had.

Shapes: M rows, N outputs, K inputs; panels [ceil(N / 16), K, 16], the last padded with zeros.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ternvl.kernels.native import PANEL


def pack(weight: Tensor) -> Tensor:
    """weight [N, K] -> panels of the same type."""
    n, k = weight.shape
    padded = F.pad(weight, (0, 0, 0, -n % PANEL))
    return padded.view(-1, PANEL, k).transpose(1, 2).contiguous()


def unpack(panels: Tensor, n: int) -> Tensor:
    """Panels of `n` outputs -> weight [N, K]."""
    return panels.transpose(1, 2).flatten(0, 1)[:n]


def linear(x: Tensor, panels: Tensor, n: int, bias: Tensor | None = None) -> Tensor:
    """x [M, K] and bias [N] float32, panels of `n` outputs -> [M, N] float32."""
    return F.linear(x, unpack(panels, n).to(x.dtype), bias)


def silu(x: Tensor) -> Tensor:
    """x / (1 + e^-x), any shape."""
    return F.silu(x)


def gelu(x: Tensor) -> Tensor:
    """The exact GELU, any shape."""
    return F.gelu(x)
