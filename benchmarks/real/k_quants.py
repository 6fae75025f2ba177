"""Rounding to Q4_K and Q6_K, which the package gguf can read and not make. The searches for scales are llama.cpp's.

Source: `ggml-quants.c` of llama.cpp (make_qkx2_quants and make_qx_quants), without an importance matrix.

Shapes: S blocks of 256 weights, B smaller blocks in each, of 32 or 16 weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

_Q4_K_BYTES, _Q6_K_BYTES = 144, 210


def q4_k(weight: Tensor) -> tuple[Tensor, int]:
    """Matrix [N, K] with K a multiple of 256 -> its values in Q4_K, and its bytes."""
    x = weight.reshape(-1, 8, 32)
    scale, least = _with_minimum(x)  # [S, 8, 1] each
    d, d_least = (_half(each.amax(dim=1, keepdim=True) / 63) for each in (scale, least))
    scale, least = d * _whole(scale, d, 63), d_least * _whole(least, d_least, 63)
    levels = _whole(x + least, scale, 15)
    return (levels * scale - least).reshape(weight.shape), len(x) * _Q4_K_BYTES


def q6_k(weight: Tensor) -> tuple[Tensor, int]:
    """Matrix [N, K] with K a multiple of 256 -> its values in Q6_K, and its bytes."""
    x = weight.reshape(-1, 16, 16)
    scale = _symmetric(x)
    extreme = scale.gather(1, scale.abs().argmax(dim=1, keepdim=True))
    d = _half(extreme / -128)
    scale = d * torch.round(_divided(scale, d)).clamp(-128, 127)
    levels = torch.round(_divided(x, scale)).clamp(-32, 31)
    return (levels * scale).reshape(weight.shape), len(x) * _Q6_K_BYTES


def _with_minimum(x: Tensor) -> tuple[Tensor, Tensor]:
    """The scale and the (subtracted) minimum of each block [.., 32] with the least weighted error of 15 steps."""
    importance = x.square().mean(dim=-1, keepdim=True).sqrt() + x.abs()
    low, high = x.amin(dim=-1, keepdim=True).clamp_max(0), x.amax(dim=-1, keepdim=True)
    best_scale, best_low = (high - low) / 15, low
    levels = _whole(x - low, best_scale, 15)
    best = (importance * (levels * best_scale + low - x).square()).sum(dim=-1, keepdim=True)
    total, sum_x = importance.sum(dim=-1, keepdim=True), (importance * x).sum(dim=-1, keepdim=True)
    for step in range(21):
        levels = _whole(x - low, (high - low) / (14 + 0.1 * step), 15)
        sum_l = (importance * levels).sum(dim=-1, keepdim=True)
        sum_l2 = (importance * levels.square()).sum(dim=-1, keepdim=True)
        sum_xl = (importance * x * levels).sum(dim=-1, keepdim=True)
        determinant = total * sum_l2 - sum_l.square()
        scale = _divided(total * sum_xl - sum_x * sum_l, determinant)
        own_low = _divided(sum_l2 * sum_x - sum_l * sum_xl, determinant)
        is_above = own_low > 0
        scale, own_low = torch.where(is_above, _divided(sum_xl, sum_l2), scale), own_low.clamp_max(0)
        error = (importance * (levels * scale + own_low - x).square()).sum(dim=-1, keepdim=True)
        is_better = (error < best) & (determinant > 0)
        best, best_scale = torch.where(is_better, error, best), torch.where(is_better, scale, best_scale)
        best_low = torch.where(is_better, own_low, best_low)
    return best_scale, -best_low


def _symmetric(x: Tensor) -> Tensor:
    """The scale of each block [.., 16] with the least error, weighted by squares, of levels from -32 to 31."""
    extreme = x.gather(-1, x.abs().argmax(dim=-1, keepdim=True))
    importance = x.square()
    best_scale, best = torch.zeros_like(extreme), torch.full_like(extreme, -1)
    for step in range(-9, 10):
        levels = torch.round(_divided(-(32 + 0.1 * step) * x, extreme)).clamp(-32, 31)
        sum_xl = (importance * x * levels).sum(dim=-1, keepdim=True)
        sum_l2 = (importance * levels.square()).sum(dim=-1, keepdim=True)
        gain = _divided(sum_xl.square(), sum_l2)
        is_better = gain > best
        best = torch.where(is_better, gain, best)
        best_scale = torch.where(is_better, _divided(sum_xl, sum_l2), best_scale)
    return best_scale


def _whole(x: Tensor, scale: Tensor, most: int) -> Tensor:
    return torch.round(_divided(x, scale)).clamp(0, most)


def _divided(x: Tensor, by: Tensor) -> Tensor:
    return torch.where(by != 0, x / torch.where(by != 0, by, 1.0), 0.0)


def _half(x: Tensor) -> Tensor:
    return x.half().float()
