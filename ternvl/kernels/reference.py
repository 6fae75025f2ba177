"""The kernels in plain torch: what they must agree with, and what serves where they cannot be had.

Shapes: M rows, N outputs, K inputs; panels [ceil(N / 16), K, 16], the last padded with zeros.
"""

from __future__ import annotations

import torch
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


def pack_int8(whole: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers [N, K] int8 -> panels [ceil(N / 16), ceil(K / 4), 16, 4] and 128 times their sums [N] int32."""
    n, k = whole.shape
    padded = F.pad(whole, (0, -k % 4, 0, -n % PANEL))
    panels = padded.view(-1, PANEL, padded.shape[1] // 4, 4).transpose(1, 2).contiguous()
    return panels, 128 * padded.sum(dim=1, dtype=torch.int32)


def pack_int4(whole: Tensor, scales: Tensor) -> Tensor:
    """Whole numbers [N, K] int8 from -8 to 7 and scales [N, G] bfloat16 -> panels, bytes [ceil(N / 16), G, 288]."""
    n, k = whole.shape
    groups = scales.shape[1]
    padded = F.pad(whole, (0, groups * 32 - k, 0, -n % PANEL)) + 8
    halves = (
        padded.view(-1, PANEL, groups, 4, 2, 4).permute(0, 2, 3, 1, 4, 5).to(torch.uint8)
    )  # [., G, runs, 16, half, 4]
    runs = (halves[..., 0, :] | halves[..., 1, :] << 4).flatten(2)
    shorts = F.pad(scales, (0, 0, 0, -n % PANEL)).view(-1, PANEL, groups).transpose(1, 2).contiguous()
    return torch.cat([shorts.view(torch.uint8), runs], dim=2)


def linear(x: Tensor, panels: Tensor, n: int, bias: Tensor | None = None) -> Tensor:
    """x [M, K] and bias [N] float32, panels of `n` outputs -> [M, N] float32."""
    return F.linear(x, unpack(panels, n).to(x.dtype), bias)


def gelu(x: Tensor) -> Tensor:
    """The exact GELU, any shape."""
    return F.gelu(x)
