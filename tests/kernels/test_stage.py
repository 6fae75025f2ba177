"""Stages against their reference in plain torch, and against themselves: alone, in company and in parts."""

import itertools
from collections.abc import Callable

import pytest
import torch

from ternvl.kernels.lora import Segments, Table, Target, Targets, Weights
from ternvl.kernels.panels import GROUP
from ternvl.kernels.stage import Stage, stage_reference
from ternvl.kernels.stage_formats import pack, pack_affine4, pack_int4, pack_int8
from ternvl.kernels.stage_types import After, Format, FourBits, Layer, Norm
from ternvl.quant.tries import block_of

ISAS = ("portable", "avx2", "avxvnni", "avx512", "avx512vnni")
SIZES = [(16, 32), (33, 31), (64, 100), (130, 66), (2, 1), (96, 1025), (24, 16), (17, 576)]  # N, K
ROWS = (1, 2, 3, 5, 7, 13, 31)
FLOAT32, QUANTISED = 5e-5, 2e-2  # an input next to the middle of two whole numbers may become either


@pytest.fixture(params=ISAS, autouse=True)
def isa(request: pytest.FixtureRequest, use_kernels: Callable[[str], None]) -> None:
    use_kernels(request.param)


def layer(n: int, k: int, after: After, norm: str) -> Layer:
    torch.manual_seed(n * 1000 + k)
    bias = torch.randn(k) if norm == "layer" else None
    of = None if norm == "none" else Norm(torch.rand(k) + 0.5, bias, 1e-6)
    return Layer(torch.randn(n, k) / k**0.5, torch.randn(n) if norm != "rms" else None, of, after)


def formats(given: Layer) -> list[Stage]:
    smoothing = torch.rand(given.weight.shape[1]) + 0.5
    stages = [pack(given), pack_int8(given), pack_int8(given, smoothing), pack_int4(given)]
    if block := block_of(given.weight.shape[1]):
        stages += [pack_int8(given, smoothing, mixed=block), pack_int4(given, mixed=block)]
    return [*stages, pack_affine4(given, four_bits(given))]


def four_bits(given: Layer) -> FourBits:
    """Random weights of 4 bits that are about as large as those of a layer."""
    n, k = given.weight.shape
    groups = -(-k // GROUP)
    scales, offsets = torch.randn(2, n, groups) / k**0.5 / 8
    return FourBits(torch.randint(0, 16, (n, groups * GROUP), dtype=torch.int8), scales, 8 * offsets)


@pytest.mark.parametrize("norm", ["none", "rms", "layer"])
@pytest.mark.parametrize("after", list(After))
def test_a_stage_is_its_reference_and_its_parts_and_its_rows_are_alone(after: After, norm: str) -> None:
    for (n, k), m in itertools.product(SIZES, ROWS):
        if after is After.SWIGLU and n % 2:
            continue
        x = torch.randn(m, k)
        for stage in formats(layer(n, k, after, norm)):
            residual = torch.randn(m, stage.num_outputs)
            y = stage(x, residual)
            is_exact = stage.format in (Format.FLOAT32, Format.BFLOAT16)
            wanted = stage_reference(stage, x, residual, None)
            assert (y - wanted).abs().max() < (FLOAT32 if is_exact else QUANTISED), (n, k, m, stage.format)
            if after is After.NOTHING:
                assert torch.equal(residual + stage.product(stage.inputs(x)), y)
            row = m // 2
            assert torch.equal(stage(x[row : row + 1], residual[row : row + 1])[0], y[row])


@pytest.mark.parametrize("after", [After.NOTHING, After.SWIGLU])
def test_rows_in_company_of_hundreds_are_themselves(after: After) -> None:
    """More rows and inputs than are prepared or wait at a time."""
    for n, k in [(50, 600), (16, 289), (80, 512)]:
        x = torch.randn(500, k)
        for stage in formats(layer(n, k, after, "rms"))[1:]:
            y = stage(x)
            for row in (0, 5, 239, 240, 256, 499):
                assert torch.equal(stage(x[row : row + 1])[0], y[row]), (n, k, row, stage.format)
            assert torch.equal(stage(x[100:117]), y[100:117])


def test_swiglu_of_large_and_strange_numbers() -> None:
    x = torch.cat([torch.linspace(-100, 100, 2_001), torch.linspace(-6, 6, 3_002)])
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # the gate is the first input, the up is the second
    stage = pack(Layer(weight, None, None, After.SWIGLU))
    rows = torch.stack([x, torch.ones_like(x)], dim=1)
    wanted = torch.nn.functional.silu(x.double())
    assert ((stage(rows)[:, 0] - wanted).abs() / (1 + x.abs())).max() < 1e-6
    rows[7, 0] = float("nan")
    assert stage(rows).isnan().nonzero().tolist() == [[7, 0]]


def adapters_of(n: int, k: int, storage: torch.dtype) -> list[Target]:
    """Of two adapters: one module in whole, scaled, and one in two parts, the first of which begins at its output 2."""
    half, is_whole = n // 2, storage == torch.int8
    targets = [Target(Table(), 0, torch.rand(half) + 0.5), Target(Table(), half), Target(Table(), half)]
    spans = ((0, half), (2, n - half - 1), (n - half - 1, n - half))
    for slot, rank in enumerate((3, 17)):
        for target, (first, stop) in zip(targets, spans, strict=True):
            sizes = ((rank, k), (stop - first, rank))
            if first < stop:
                a, b = (torch.randn(size).to(torch.float32 if is_whole else storage) for size in sizes)
                target.table.put(slot, Weights.pack(a, b, 0.3, first, in_int8=is_whole))
    return targets


@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("after", list(After))
def test_what_adapters_add_is_the_references_and_a_rows_own(after: After, storage: torch.dtype) -> None:
    for (n, k), m in itertools.product(SIZES, ROWS):
        if n < 2 or (after is After.SWIGLU and n % 2):
            continue
        x, targets = torch.randn(m, k), Targets([adapters_of(n, k, storage)])
        spans = [(0, 1, m // 2), (1, max(1, m // 2), m)]
        segments = Segments([span for span in spans if span[1] < span[2]], m)
        for stage in formats(layer(n, k, after, "rms")):
            residual = torch.randn(m, stage.num_outputs)
            y = stage(x, residual, (targets, segments))
            is_exact = stage.format in (Format.FLOAT32, Format.BFLOAT16)
            wanted = stage_reference(stage, x, residual, (targets, segments))
            limit = (FLOAT32 if is_exact and storage != torch.int8 else QUANTISED) * wanted.abs().max().clamp_min(1)
            assert (y - wanted).abs().max() < limit, (n, k, m, stage.format)
            assert torch.equal(stage(x, residual)[0], y[0])
            for slot, row, _ in segments.spans:
                alone = (targets, Segments([(slot, 0, 1)], 1))
                assert torch.equal(stage(x[row : row + 1], residual[row : row + 1], alone)[0], y[row])
                assert not torch.equal(stage(x, residual)[row], y[row])


def test_threads_change_no_bit() -> None:
    threads = torch.get_num_threads()
    try:
        for stage in formats(layer(130, 66, After.GELU, "layer")):
            x = torch.randn(31, 66)
            results = []
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                results.append(stage(x))
            assert torch.equal(results[0], results[1])
            assert torch.equal(results[0], results[2])
    finally:
        torch.set_num_threads(threads)


def test_a_row_of_zeros_gives_the_bias() -> None:
    given = layer(33, 31, After.NOTHING, "none")
    assert given.bias is not None
    for stage in formats(given):
        assert torch.equal(stage(torch.zeros(2, 31))[1], given.bias)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_shows_in_its_own_row(value: float) -> None:
    for stage in formats(layer(33, 31, After.NOTHING, "none")):
        x = torch.randn(3, 31)
        wanted = stage(x)
        x[1, 30] = value
        y = stage(x)
        assert not y[1].isfinite().any()
        assert torch.equal(y[[0, 2]], wanted[[0, 2]])
