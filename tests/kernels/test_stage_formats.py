"""Layers made into stages: their panels are the reference's, and unpack to the layer's weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ternvl.kernels.panels import GROUP
from ternvl.kernels.stage import unpack
from ternvl.kernels.stage_formats import pack, pack_int4, pack_int8
from ternvl.kernels.stage_types import After, Format, Layer

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


def test_smoothing_divides_the_weights_and_multiplies_the_inputs() -> None:
    layer = Layer(torch.randn(33, 31), None, None, After.NOTHING)
    smoothing, x = torch.rand(31) + 0.5, torch.randn(5, 31)
    for stage, bound in ((pack_int8(layer, smoothing), 0.02), (pack_int4(layer, smoothing), 0.2)):
        assert torch.equal(stage.smoothing, smoothing)
        wanted = x @ layer.weight.T
        assert (stage(x) - wanted).norm() / wanted.norm() < bound
