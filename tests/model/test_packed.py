"""The packed modules that take the place of torch's, in every library that this CPU runs."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from ternvl.fused.packed import GELU, PackedLinear, PackedPatches


@pytest.fixture(params=["torch", "portable", "avx2", "avx512"], autouse=True)
def isa(request: pytest.FixtureRequest, use_kernels: Callable[[str], None]) -> str:
    use_kernels(request.param)
    torch.manual_seed(0)
    return str(request.param)


@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_packed_layer_is_torchs_and_gives_its_weights_back(storage: torch.dtype, has_bias: bool) -> None:
    linear = nn.Linear(321, 33, bias=has_bias).to(storage).requires_grad_(False)
    packed, x = PackedLinear.from_linear(linear, storage), torch.randn(7, 321)
    assert torch.equal(packed.weight, linear.weight)
    assert torch.allclose(packed(x), linear.float()(x), atol=1e-5)


def test_inputs_may_be_strided_and_of_any_shape() -> None:
    packed = PackedLinear.from_linear(nn.Linear(40, 33).requires_grad_(False), torch.float32)
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


def test_patches_are_a_convolution(isa: str) -> None:
    conv = nn.Conv2d(3, 20, 4, 4).requires_grad_(False)
    pixels = torch.randn(3, 3, 13, 16)
    packed = PackedPatches(conv, torch.float32)
    y = packed(pixels)
    assert torch.allclose(y, conv(pixels), atol=1e-5)
    assert isa == "torch" or torch.equal(y[1:2], packed(pixels[1:2])), "torch's own products differ in the last bits"


def test_gelu_is_torchs() -> None:
    x = torch.linspace(-6, 6, 30_002).view(2, -1)
    assert torch.allclose(GELU()(x), nn.GELU()(x), atol=2e-6)
