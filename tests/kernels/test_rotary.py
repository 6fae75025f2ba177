"""Rotary positions against float64, with the bits of the reference, in every library that this CPU runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ternvl.kernels.rotary import rotate, rotate_reference

TOLERANCE = 1e-6
TOKENS, HEADS, SIZES = (1, 3, 7, 33), (1, 3), (2, 6, 14, 64, 66)


@pytest.fixture(params=["torch", "portable", "avx2", "avx512"], autouse=True)
def isa(request: pytest.FixtureRequest, use_kernels: Callable[[str], None]) -> None:
    use_kernels(request.param)


def angles(tokens: int, size: int) -> tuple[Tensor, Tensor]:
    """cos and sin [T, 1, D], whose halves are equal."""
    half = torch.randn(tokens, 1, size // 2).repeat(1, 1, 2)
    return half.cos(), half.sin()


def test_heads_are_rotated_and_what_lies_between_tokens_is_kept() -> None:
    torch.manual_seed(0)
    for tokens, heads, size in itertools.product(TOKENS, HEADS, SIZES):
        wide = torch.randn(tokens, heads + 2, size)
        before, (cos, sin) = wide.clone(), angles(tokens, size)
        rotate(wide[:, :heads], cos, sin)
        first, second = before[:, :heads].double().chunk(2, dim=-1)
        c, s = (each.double()[..., : size // 2] for each in (cos, sin))
        exact = torch.cat([first * c - second * s, second * c + first * s], dim=-1)
        assert (wide[:, :heads] - exact).abs().max() < TOLERANCE * (1 + before.abs().max()), (tokens, heads, size)
        assert torch.equal(wide[:, heads:], before[:, heads:])
        expected = before[:, :heads].clone()
        rotate_reference(expected, cos, sin)
        assert torch.equal(wide[:, :heads], expected), (tokens, heads, size)


def test_a_token_has_the_same_bits_alone() -> None:
    torch.manual_seed(1)
    x, (cos, sin) = torch.randn(33, 3, 64), angles(33, 64)
    alone = x[7:8].clone()
    rotate(x, cos, sin)
    rotate(alone, cos[7:8], sin[7:8])
    assert torch.equal(alone[0], x[7])


def test_heads_with_strides_are_rotated_in_place() -> None:
    torch.manual_seed(2)
    wide, (cos, sin) = torch.randn(5, 3, 32), angles(5, 16)
    expected = wide[..., ::2].clone()
    rotate_reference(expected, cos, sin)
    rotate(wide[..., ::2], cos, sin)
    assert torch.equal(wide[..., ::2], expected)
