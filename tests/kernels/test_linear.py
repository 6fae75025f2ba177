"""The packed linear layer and the activations, in every library that this CPU runs."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import nn

from ternvl.fused.packed import GELU, PackedLinear, PackedPatches
from ternvl.kernels import panels, product

FLOAT32_TOLERANCE = 2e-6  # of the sum of the products' sizes: roundings of a chain of float32
ACTIVATION_TOLERANCE = 2e-6

SIZES = [(1, 1), (15, 3), (16, 1), (17, 320), (33, 321), (100, 700), (130, 66)]  # N, K
ROWS = [1, 2, 3, 5, 6, 7, 12, 13, 31, 40, 150]


@pytest.fixture(params=["portable", "avx2", "avx512"], autouse=True)
def isa(request: pytest.FixtureRequest, use_kernels: Callable[[str], None]) -> str:
    use_kernels(request.param)
    return str(request.param)


def layer(n: int, k: int, storage: torch.dtype, *, bias: bool) -> tuple[PackedLinear, nn.Linear]:
    torch.manual_seed(n * 1000 + k)
    linear = nn.Linear(k, n, bias=bias).to(storage).requires_grad_(False)
    return PackedLinear.from_linear(linear, storage), linear


@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_the_layer_is_torchs_and_its_rows_are_alone(storage: torch.dtype, bias: bool) -> None:
    for (n, k), m in itertools.product(SIZES, ROWS):
        packed, linear = layer(n, k, storage, bias=bias)
        x = torch.randn(m, k)
        y = packed(x)
        exact = x.double() @ linear.weight.double().T
        scale = x.abs().double() @ linear.weight.abs().double().T + 1
        if bias:
            exact += linear.bias.double()
        assert y.dtype == torch.float32
        assert ((y - exact).abs() / scale).max() < FLOAT32_TOLERANCE, (n, k, m)
        for row in {0, m // 2, m - 1}:
            assert torch.equal(packed(x[row : row + 1])[0], y[row]), (n, k, m, row)


def test_threads_change_no_bit() -> None:
    threads = torch.get_num_threads()
    try:
        for (n, k), m in itertools.product(SIZES, [1, 7, 150]):
            packed, _ = layer(n, k, torch.bfloat16, bias=True)
            x = torch.randn(m, k)
            results = []
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                results.append(packed(x))
            assert torch.equal(results[0], results[1])
            assert torch.equal(results[0], results[2])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16])
def test_panels_are_the_references_and_unpack_gives_the_weights(storage: torch.dtype) -> None:
    for n, k in SIZES:
        packed, linear = layer(n, k, storage, bias=False)
        assert torch.equal(packed.panels, panels.pack_reference(linear.weight))
        assert torch.equal(packed.weight, linear.weight)


def test_inputs_may_be_strided_and_of_any_shape() -> None:
    packed, _ = layer(33, 40, torch.float32, bias=True)
    whole = torch.randn(4, 5, 80)
    for x in (
        whole[..., :40],
        whole[..., ::2],
        whole[::2, 1:4, 40:],
        torch.randn(40, 6).T,
        torch.randn(1, 40).expand(3, 40),
    ):
        y = packed(x)
        assert y.shape == (*x.shape[:-1], 33)
        assert torch.equal(y, packed(x.clone(memory_format=torch.contiguous_format)))
    assert packed(whole[:0, 0, :40]).shape == (0, 33)


def test_patches_are_a_convolution() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 20, 4, 4).requires_grad_(False)
    pixels = torch.randn(3, 3, 13, 16)
    y = PackedPatches(conv, torch.float32)(pixels)
    assert torch.allclose(y, conv(pixels), atol=1e-5)
    assert torch.equal(y[1:2], PackedPatches(conv, torch.float32)(pixels[1:2]))


def test_gelu_is_torchs_wherever_an_element_lies() -> None:
    module, plain = GELU(), nn.GELU()
    x = torch.cat([torch.linspace(-100, 100, 20_001), torch.linspace(-6, 6, 30_002)])
    y = module(x)
    assert ((y - plain(x.double())).abs() / (1 + x.abs())).max() < ACTIVATION_TOLERANCE
    for start, stop in [(1, 2), (3, 20), (7, 40_001), (49_990, 50_003)]:
        assert torch.equal(module(x[start:stop]), y[start:stop])
    assert module(torch.tensor([float("nan")])).isnan().all()
    assert torch.equal(product.gelu(x[::2]), product.gelu(x)[::2])
