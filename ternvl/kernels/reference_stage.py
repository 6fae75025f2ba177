"""Stages in plain torch: what the native ones must agree with, and what serves where they cannot be had.

Whole numbers are multiplied in float64, which holds their sums exactly, so a row's result is the same in any company.

Shapes: M rows, N outputs, K inputs, F outputs after the activation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from ternvl.kernels import stage_formats
from ternvl.kernels.int4_rounding import GROUP
from ternvl.kernels.lora import Segments, Targets, add_reference

if TYPE_CHECKING:
    from ternvl.kernels.stage import Stage


def stage(stage: Stage, x: Tensor, residual: Tensor | None, adapters: tuple[Targets, Segments] | None) -> Tensor:
    """x [M, K] -> [M, F]."""
    rows = inputs(stage, x)
    sums = product(stage, rows)
    if adapters is not None:
        targets, segments = adapters
        add_reference(targets.stages[0], segments, rows, sums)
    out = _activated(stage, sums)
    return out if residual is None else residual + out


def inputs(stage: Stage, x: Tensor) -> Tensor:
    """x [M, K] after the norm."""
    if stage.norm_weight is None:
        return x
    if stage.norm_bias is not None:
        return F.layer_norm(x, (stage.in_features,), stage.norm_weight, stage.norm_bias, stage.eps)
    return stage.norm_weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + stage.eps))


def product(stage: Stage, x: Tensor) -> Tensor:
    """Normed rows [M, K] -> [M, N]."""
    x = x if stage.smoothing is None else x * stage.smoothing
    weight, scales = stage_formats.unpack(stage)
    bias = None if stage.bias is None else stage_formats.from_panels(stage, stage.bias)
    if scales is None:
        return F.linear(x, weight.to(x.dtype), bias)
    largest = x.abs().amax(dim=1, keepdim=True)
    whole = torch.round(x * torch.where(largest > 0, 127 / largest, 0.0))
    groups = scales.shape[1]
    size = GROUP if stage.format.name == "INT4" else stage.in_features
    padded = F.pad(whole, (0, groups * size - whole.shape[1])).double().view(len(x), groups, size)
    rows = F.pad(weight, (0, groups * size - weight.shape[1])).double().view(len(weight), groups, size)
    sums = torch.einsum("mgk,ngk->mng", padded, rows).float() * scales  # [M, N, groups]
    total = sums.sum(dim=2) * (largest / 127)
    return total if bias is None else total + bias


def _activated(stage: Stage, sums: Tensor) -> Tensor:
    """[M, N] -> [M, F]."""
    name = stage.after.name
    if name == "GELU":
        return F.gelu(sums)
    if name == "SWIGLU":
        gates, ups = sums.chunk(2, dim=1)
        return F.silu(gates) * ups
    return sums
