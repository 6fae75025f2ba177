"""Layers made into stages: their panels are the reference's, and unpack to the layer's weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ternvl.kernels.panels import GROUP
from ternvl.kernels.rounding import mix
from ternvl.kernels.stage import Stage, unpack, unpack_affine4
from ternvl.kernels.stage_formats import pack, pack_affine4, pack_int4, pack_int8
from ternvl.kernels.stage_types import After, Format, FourBits, Layer

SIZES = [(16, 32), (33, 31), (64, 100), (130, 66), (2, 1), (96, 1025)]  # N, K
AFTER = (After.NOTHING, After.SWIGLU)
WHOLE_8, WHOLE_4 = 0.01, 0.12  # relative error of the weights


@pytest.fixture(params=["portable", "avx2", "avxvnni", "avx512", "avx512vnni"], autouse=True)
def isa(request: pytest.FixtureRequest, use_kernels: Callable[[str], None]) -> None:
    use_kernels(request.param)


def layers() -> list[Layer]:
    """Layers of all sizes; SwiGLU has as many gates as ups."""
    torch.manual_seed(0)
    sizes = [(n, k, after) for (n, k), after in itertools.product(SIZES, AFTER) if after is After.NOTHING or n % 2 == 0]
    return [Layer(torch.randn(n, k) / k**0.5, torch.randn(n), None, after) for n, k, after in sizes]


def scaled(whole: Tensor, scales: Tensor) -> Tensor:
    width = whole.shape[1] if scales.shape[1] == 1 else GROUP
    return whole * scales.repeat_interleave(width, dim=1)[:, : whole.shape[1]]


def test_exact_weights_are_kept() -> None:
    for layer in layers():
        short = Layer(layer.weight.bfloat16(), layer.bias, None, layer.after)
        for given, format in ((layer, Format.FLOAT32), (short, Format.BFLOAT16)):
            stage = pack(given)
            assert stage.format is format
            weight, scales = unpack(stage)
            assert scales is None
            assert torch.equal(weight, given.weight)


def test_quantised_weights_are_near_the_layers_and_panels_are_the_references(monkeypatch: pytest.MonkeyPatch) -> None:
    for layer in layers():
        native = [pack_int8(layer), pack_int4(layer)]
        for stage, bound in zip(native, (WHOLE_8, WHOLE_4), strict=True):
            whole, scales = unpack(stage)
            assert scales is not None
            error = (scaled(whole, scales) - layer.weight).norm() / layer.weight.norm()
            assert error < bound, (stage.format, layer.weight.shape)
        with monkeypatch.context() as patch:
            patch.setenv("TERNVL_KERNELS", "torch")
            plain = [pack_int8(layer), pack_int4(layer)]
        for one, other in zip(native, plain, strict=True):
            for (name, buffer), (_, same) in zip(one.named_buffers(), other.named_buffers(), strict=True):
                assert torch.equal(buffer, same), (name, layer.weight.shape)


def test_mixing_is_a_transform_by_a_hadamard_matrix_and_leaves_the_function_as_it_is() -> None:
    hadamard = torch.ones(1, 1)
    for block in (2, 4, 8, 16, 32, 64, 128, 256):
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
        if block < 16:
            continue
        torch.manual_seed(block)
        weight, x = torch.randn(33, 3 * block), torch.randn(5, 3 * block)
        x[:, 5] *= 50  # which leaves the other inputs a few steps, if they are not mixed
        wanted = x @ weight.T
        blocks = torch.block_diag(*[hadamard] * 3)
        assert torch.equal(blocks @ blocks, block * torch.eye(3 * block))
        assert torch.allclose(mix(x, block), x @ blocks, rtol=1e-5, atol=1e-4)
        layer = Layer(weight, None, None, After.NOTHING)
        for stage, bound in ((pack_int8(layer, mixed=block), 0.04), (pack_int4(layer, mixed=block), 0.2)):
            assert stage.mixed == block
            assert error_of(stage, x, wanted) < bound, (block, stage.format)
        if block >= 64:
            plain, mixed = pack_int8(layer), pack_int8(layer, mixed=block)
            assert error_of(mixed, x, wanted) < 0.5 * error_of(plain, x, wanted)


def error_of(stage: Stage, x: Tensor, wanted: Tensor) -> float:
    return float((stage(x) - wanted).norm() / wanted.norm())


def test_smoothing_divides_the_weights_and_multiplies_the_inputs() -> None:
    layer = Layer(torch.randn(33, 31), None, None, After.NOTHING)
    smoothing, x = torch.rand(31) + 0.5, torch.randn(5, 31)
    for stage, bound in ((pack_int8(layer, smoothing), 0.02), (pack_int4(layer, smoothing), 0.2)):
        assert torch.equal(stage.smoothing, smoothing)
        wanted = x @ layer.weight.T
        assert (stage(x) - wanted).norm() / wanted.norm() < bound


@pytest.mark.parametrize("after", AFTER)
def test_weights_of_4_bits_are_kept_to_the_bit(after: After) -> None:
    torch.manual_seed(1)
    for n, k in ((16, 32), (34, 96), (130, 1024)):
        numbers = torch.randint(0, 16, (n, k), dtype=torch.int8)
        given = FourBits(numbers, *torch.randn(2, n, k // GROUP).unbind())
        stage = pack_affine4(Layer(torch.zeros(n, k), None, None, after), given)
        assert all(torch.equal(one, other) for one, other in zip(unpack_affine4(stage), given, strict=True))
        assert stage.panels.shape[1:] == (k // GROUP, 384), "6 bits a weight"


def test_a_product_is_that_of_the_weights() -> None:
    """Inputs that are whole numbers with a largest one of 127 are not rounded, so the products are nearly exact."""
    torch.manual_seed(2)
    given = FourBits(torch.randint(0, 16, (50, 256), dtype=torch.int8), *torch.randn(2, 50, 8).unbind())
    weight = given.whole.double() * given.scales.double().repeat_interleave(GROUP, 1)
    weight += given.offsets.double().repeat_interleave(GROUP, 1)
    x = torch.randint(-126, 127, (9, 256)).float()
    x[:, 3] = 127
    found = pack_affine4(Layer(torch.zeros(50, 256), None, None, After.NOTHING), given).product(x)
    wanted = x.double() @ weight.T
    assert ((found - wanted).abs() / wanted.abs().max()).max() < 1e-6
