"""Rounds weights to whole numbers: of 8 bits with one scale for each output, or of 4 bits with one for each 32 inputs.

Each weight becomes its nearest value, or later weights compensate for the errors of earlier ones on the inputs of
samples (arXiv 2210.17323). Inputs are mixed and rounded here, too, as the native kernels do it.

Shapes: N outputs, K inputs, G groups of 32 inputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ternvl.kernels.panels import GROUP

_DIVISORS = (-8.0, 7.0, -8.5, 7.5, -9.0, 8.0, -7.5, 8.5)
_DAMPING = 0.02
"""The damping of the inputs' second moments, relative to their mean. It is needed because fewer rows than inputs leave
some directions hardly observed."""
_BLOCK = 64
"""The inputs of a block of 8-bit weights, after which the weights of later blocks are changed."""


def nearest_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [N, K] float32 -> whole numbers [N, K] int8 from -127 to 127 and scales [N] float32."""
    scales = weight.abs().amax(dim=1) / 127
    return torch.round(weight / torch.where(scales > 0, scales, 1.0)[:, None]).to(torch.int8), scales


def compensated_int8(weight: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """weight [N, K] float32 and the result of `factor_of` [K, K] -> the same as `nearest_int8`."""
    scales = weight.abs().amax(dim=1) / 127
    whole = torch.empty(weight.shape, dtype=torch.int8)
    column = scales[:, None]
    _compensate(weight.clone(), factor, whole, _BLOCK, 127, lambda first, group: column)
    return whole, scales


def nearest_int4(weight: Tensor, importance: Tensor | None) -> tuple[Tensor, Tensor]:
    """weight [N, K] float32 -> whole numbers [N, K] int8 from -8 to 7 and scales [N, G] bfloat16.

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
        whole[first : first + step] = _round(some, scale, -8, 7).flatten(1)[:, :k].to(torch.int8)
        scales[first : first + step] = scale.squeeze(2).bfloat16()
    return whole, scales


def compensated_int4(weight: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """weight [N, K] float32 and the result of `factor_of` [K, K] -> the same as `nearest_int4`."""
    n, k = weight.shape
    pad = -k % GROUP
    left, factor = F.pad(weight, (0, pad)), F.pad(factor, (0, pad, 0, pad))
    factor.diagonal()[k:] = 1
    importance = factor.diagonal().reciprocal().square()
    whole = torch.empty(left.shape, dtype=torch.int8)
    scales = torch.empty(n, left.shape[1] // GROUP, dtype=torch.bfloat16)

    def scale_of(first: int, group: Tensor) -> Tensor:
        scale = _scales(group, importance[first : first + GROUP])
        scales[:, first // GROUP] = scale[:, 0].bfloat16()
        return scale

    _compensate(left, factor, whole, GROUP, 7, scale_of)
    return whole[:, :k].contiguous(), scales


def factor_of(moments: Tensor) -> Tensor:
    """The inputs' mean products moments [K, K] -> the upper Cholesky factor [K, K] of the inverse of these, damped."""
    damped = moments.clone()
    damped.diagonal().add_(_DAMPING * damped.diagonal().mean().clamp_min(1e-12))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def _compensate(
    left: Tensor, factor: Tensor, whole: Tensor, size: int, most: int, scale_of: Callable[[int, Tensor], Tensor]
) -> None:
    """Round the weights `left` [N, K] input by input into `whole` [N, K], at most to `most`; `left` is changed.

    The weights that are not rounded yet are changed so that the products with the samples' inputs stay as near to the
    exact ones as possible. `scale_of(first, group)` gives the scales [N, 1] of the `size` inputs from `first` on.
    """
    k, least = left.shape[1], -8 if most == 7 else -most
    for first in range(0, k, size):
        last = min(k, first + size)
        group = left[:, first:last].T.contiguous()  # [size, N]
        scale = scale_of(first, group.T)[:, 0]
        divisor = torch.where(scale != 0, scale, 1.0)
        within = factor[first:last, first:last]
        errors, block = torch.empty_like(group), torch.empty(group.shape, dtype=torch.int8)
        for i in range(last - first):
            rounded = torch.round(group[i] / divisor).clamp_(least, most)
            block[i] = rounded
            errors[i] = (group[i] - rounded * scale) / within[i, i]
            group[i + 1 :].addr_(within[i, i + 1 :], errors[i], alpha=-1)
        whole[:, first:last] = block.T
        left[:, last:].addmm_(errors.T, factor[first:last, last:], alpha=-1)


def _scales(groups: Tensor, importance: Tensor) -> Tensor:
    """Groups [..., 32] -> the candidate scales with the least squared error, [..., 1]."""
    extreme = groups.gather(-1, groups.abs().argmax(dim=-1, keepdim=True))
    best = torch.full_like(extreme, torch.inf)
    best_scale = torch.zeros_like(extreme)
    for divisor in _DIVISORS:
        scale = (extreme / divisor).bfloat16().float()
        error = ((_round(groups, scale, -8, 7) * scale - groups).square() * importance).sum(dim=-1, keepdim=True)
        is_better = error < best
        best, best_scale = torch.where(is_better, error, best), torch.where(is_better, scale, best_scale)
    return best_scale


def _round(weight: Tensor, scale: Tensor, least: int, most: int) -> Tensor:
    return torch.round(weight / torch.where(scale != 0, scale, 1.0)).clamp_(least, most)


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round the inputs of a product: x [M, K] -> whole numbers from -127 to 127, and the scales [M, 1]."""
    largest = x.abs().amax(dim=1, keepdim=True)
    return torch.round(x * torch.where(largest > 0, 127 / largest, 0.0)), largest / 127


def mix(x: Tensor, block: int) -> Tensor:
    """Return the Walsh-Hadamard transform of each block of `block` inputs of x [..., K]; x itself if `block` is 0.

    `block` is a power of two. Twice applied, it multiplies by `block`.
    """
    distance = 1
    while distance < block:
        pairs: Tensor = x.unflatten(-1, (-1, 2, distance))
        a, b = pairs.unbind(dim=-2)
        x = torch.stack([a + b, a - b], dim=-2).flatten(-3)
        distance *= 2
    return x
