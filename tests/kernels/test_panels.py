"""Panels: packed as the reference packs them, and unpacked to the same values, in every library that this CPU runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch

from ternvl.kernels import panels
from ternvl.kernels.panels import GROUP, PANEL

SIZES = list(itertools.product((1, 15, 16, 17, 33, 100), (1, 3, 31, 32, 33, 100)))  # N, K


@pytest.fixture(params=["torch", "portable", "avx2", "avx512"], autouse=True)
def isa(request: pytest.FixtureRequest, use_kernels: Callable[[str], None]) -> None:
    use_kernels(request.param)
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights(dtype: torch.dtype) -> None:
    for n, k in SIZES:
        weight = torch.randn(n, k).to(dtype)
        packed = panels.pack(weight)
        assert packed.shape == (-(-n // PANEL), k, PANEL)
        assert torch.equal(packed, panels.pack_reference(weight)), (n, k)
        assert torch.equal(panels.unpack(packed, n), weight), (n, k)
        assert torch.equal(panels.pack(weight.T.contiguous().T), packed), "weights may be strided"


def test_whole_numbers_of_8_bits() -> None:
    for n, k in SIZES:
        whole = torch.randint(-127, 128, (n, k), dtype=torch.int8)
        packed, offsets = panels.pack_int8(whole)
        expected, sums = panels.pack_int8_reference(whole)
        assert torch.equal(packed, expected), (n, k)
        assert torch.equal(offsets, sums), (n, k)
        assert torch.equal(offsets[:n], 128 * whole.sum(dim=1, dtype=torch.int32))
        assert not offsets[n:].any()
        assert torch.equal(panels.unpack_int8(packed, k)[:n], whole), (n, k)


def test_whole_numbers_of_4_bits() -> None:
    for n, k in SIZES:
        groups = -(-k // GROUP)
        whole, scales = torch.randint(-8, 8, (n, k), dtype=torch.int8), torch.randn(n, groups).bfloat16()
        packed = panels.pack_int4(whole, scales)
        assert packed.shape == (-(-n // PANEL), groups, 288)
        assert torch.equal(packed, panels.pack_int4_reference(whole, scales)), (n, k)
        back, factors = panels.unpack_int4(packed, k)
        assert torch.equal(back[:n], whole), (n, k)
        assert torch.equal(factors[:n], scales), (n, k)
