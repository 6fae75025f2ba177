"""The product with a packed matrix and the exact GELU, in every library that this CPU runs."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ternvl.kernels.panels import pack
from ternvl.kernels.product import gelu, gelu_reference, linear, linear_reference

FLOAT32_TOLERANCE = 2e-6  # of the sum of the products' sizes: roundings of a chain of float32
ACTIVATION_TOLERANCE = 2e-6

SIZES = [(1, 1), (15, 3), (16, 1), (17, 320), (33, 321), (100, 700), (130, 66)]  # N, K
ROWS = [1, 2, 3, 5, 6, 7, 12, 13, 31, 40, 150]


@pytest.fixture(params=["portable", "avx2", "avx512"], autouse=True)
def isa(request: pytest.FixtureRequest, use_kernels: Callable[[str], None]) -> None:
    use_kernels(request.param)


def weight_of(n: int, k: int, storage: torch.dtype) -> Tensor:
    torch.manual_seed(n * 1000 + k)
    return nn.Linear(k, n).weight.detach().to(storage)


@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_bias", [True, False])
def test_the_product_agrees_with_float64_and_rows_have_the_same_bits_alone(
    storage: torch.dtype, has_bias: bool
) -> None:
    for (n, k), m in itertools.product(SIZES, ROWS):
        weight = weight_of(n, k, storage)
        panels, bias, x = pack(weight), torch.randn(n) if has_bias else None, torch.randn(m, k)
        y = linear(x, panels, n, bias)
        exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
        scale = x.abs().double() @ weight.abs().double().T + 1
        assert y.dtype == torch.float32
        assert ((y - exact).abs() / scale).max() < FLOAT32_TOLERANCE, (n, k, m)
        assert ((linear_reference(x, panels, n, bias) - exact).abs() / scale).max() < FLOAT32_TOLERANCE
        for row in {0, m // 2, m - 1}:
            assert torch.equal(linear(x[row : row + 1], panels, n, bias)[0], y[row]), (n, k, m, row)


def test_threads_change_no_bit() -> None:
    threads = torch.get_num_threads()
    try:
        for (n, k), m in itertools.product(SIZES, [1, 7, 150]):
            panels, x, results = pack(weight_of(n, k, torch.bfloat16)), torch.randn(m, k), []
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                results.append(linear(x, panels, n, torch.ones(n)))
            assert torch.equal(results[0], results[1])
            assert torch.equal(results[0], results[2])
    finally:
        torch.set_num_threads(threads)


def test_rows_may_be_strided() -> None:
    panels, wide = pack(weight_of(33, 40, torch.float32)), torch.randn(8, 80)
    for x in (wide[:, :40], wide[:, ::2], wide[::2, 40:], torch.randn(40, 6).T, torch.randn(1, 40).expand(3, 40)):
        assert torch.equal(linear(x, panels, 33), linear(x.contiguous(), panels, 33))
    assert linear(wide[:0, :40], panels, 33).shape == (0, 33)


def test_gelu_is_torchs_at_every_position() -> None:
    x = torch.cat([torch.linspace(-100, 100, 20_001), torch.linspace(-6, 6, 30_002)])
    y = gelu(x)
    assert ((y - F.gelu(x.double())).abs() / (1 + x.abs())).max() < ACTIVATION_TOLERANCE
    assert ((gelu_reference(x) - y).abs() / (1 + x.abs())).max() < ACTIVATION_TOLERANCE
    for start, stop in [(1, 2), (3, 20), (7, 40_001), (49_990, 50_003)]:
        assert torch.equal(gelu(x[start:stop]), y[start:stop])
    assert gelu(torch.tensor([float("nan")])).isnan().all()
    assert torch.equal(gelu(x[::2]), y[::2])
