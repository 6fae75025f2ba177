"""Rounds weights to whole numbers from -8 to 7 with one scale for each group of 32 inputs: each weight to its nearest
value, or so that later weights compensate for the errors of earlier ones on given inputs (arXiv 2210.17323).

Shapes: N outputs, K inputs, G groups of 32 inputs, R rows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ternvl.kernels.panels import GROUP

_DIVISORS = (-8.0, 7.0, -8.5, 7.5, -9.0, 8.0, -7.5, 8.5)
_DAMPING = 0.1
"""The damping of the inputs' second moments, relative to their mean. It is needed because fewer rows than inputs leave
some directions hardly observed."""


def nearest(weight: Tensor, importance: Tensor | None) -> tuple[Tensor, Tensor]:
    """weight [N, K] -> whole numbers [N, K] int8 and scales [N, G] bfloat16.

    Each scale is the best candidate for its group, in which an input is weighted by its `importance` [K]. A part of the
    outputs is rounded at a time, which saves memory.
    """
    n, k = weight.shape
    importance = torch.ones(k) if importance is None else importance
    groups = -(-k // GROUP)
    importance = F.pad(importance, (0, groups * GROUP - k)).view(groups, GROUP)
    whole, scales = torch.empty(n, k, dtype=torch.int8), torch.empty(n, groups, dtype=torch.bfloat16)
    step = max(1, 2**22 // k)
    for first in range(0, n, step):
        some = F.pad(weight[first : first + step], (0, groups * GROUP - k)).view(-1, groups, GROUP)
        scale = _scales(some, importance)
        whole[first : first + step] = _round(some, scale).flatten(1)[:, :k].to(torch.int8)
        scales[first : first + step] = scale.squeeze(2).bfloat16()
    return whole, scales


def compensated(weight: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """weight [N, K] and sample inputs [R, K], float32 -> the same as `nearest`.

    The weights are rounded input by input. The weights that are not rounded yet are changed so that the products with
    the sample inputs stay as near to the exact ones as possible.
    """
    n, k = weight.shape
    pad = (0, -k % GROUP)
    left, rows = F.pad(weight, pad), F.pad(inputs, pad)
    factor = _factor(rows)
    importance = factor.diagonal().reciprocal().square()
    whole = torch.empty(left.shape, dtype=torch.int8)
    scales = torch.empty(n, left.shape[1] // GROUP, dtype=torch.bfloat16)
    for g in range(scales.shape[1]):
        first, last = g * GROUP, (g + 1) * GROUP
        group = left[:, first:last].contiguous()
        scale = _scales(group, importance[first:last])
        within = factor[first:last, first:last]
        errors = torch.empty(GROUP, n)
        for i in range(GROUP):
            rounded = _round(group[:, i], scale[:, 0])
            whole[:, first + i] = rounded.to(torch.int8)
            errors[i] = (group[:, i] - rounded * scale[:, 0]) / within[i, i]
            group[:, i + 1 :] -= torch.outer(errors[i], within[i, i + 1 :])
        left[:, last:] -= errors.T @ factor[first:last, last:]
        scales[:, g] = scale[:, 0].bfloat16()
    return whole[:, :k].contiguous(), scales


def _factor(rows: Tensor) -> Tensor:
    """Return the upper Cholesky factor [K, K] of the inverse of the inputs' damped second moments."""
    moments = rows.T @ rows / len(rows)
    moments.diagonal().add_(_DAMPING * moments.diagonal().mean().clamp_min(1e-12))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def _scales(groups: Tensor, importance: Tensor) -> Tensor:
    """Groups [..., 32] -> the candidate scales with the least squared error, [..., 1]."""
    extreme = groups.gather(-1, groups.abs().argmax(dim=-1, keepdim=True))
    best = torch.full_like(extreme, torch.inf)
    best_scale = torch.zeros_like(extreme)
    for divisor in _DIVISORS:
        scale = (extreme / divisor).bfloat16().float()
        error = ((_round(groups, scale) * scale - groups).square() * importance).sum(dim=-1, keepdim=True)
        is_better = error < best
        best, best_scale = torch.where(is_better, error, best), torch.where(is_better, scale, best_scale)
    return best_scale


def _round(weight: Tensor, scale: Tensor) -> Tensor:
    return torch.round(weight / torch.where(scale != 0, scale, 1.0)).clamp_(-8, 7)
