"""The root-mean-square norm against float64, and rows alone, in every library that this CPU runs."""

from collections.abc import Callable

import pytest
import torch

from ternvl.kernels.norm import rms_norm, rms_norm_reference

TOLERANCE = 1e-6


@pytest.fixture(params=["torch", "portable", "avx2", "avx512"], autouse=True)
def isa(request: pytest.FixtureRequest, use_kernels: Callable[[str], None]) -> None:
    use_kernels(request.param)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 31, 33, 896, 1025])
@pytest.mark.parametrize("rows", [1, 3, 33])
def test_it_agrees_with_float64_and_rows_have_the_same_bits_alone(size: int, rows: int) -> None:
    torch.manual_seed(size)
    x, weight = torch.randn(rows, 2 * size)[:, ::2], torch.randn(size)
    y = rms_norm(x, weight, 1e-6)
    assert torch.allclose(
        y, rms_norm_reference(x.double(), weight.double(), 1e-6).float(), rtol=TOLERANCE, atol=TOLERANCE
    )
    assert torch.equal(rms_norm(x[rows // 2 : rows // 2 + 1], weight, 1e-6)[0], y[rows // 2])
