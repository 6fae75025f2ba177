"""A stage in 8 or 4 bits, with its inputs as they are, mixed or smoothed, each with the error that it makes.

What is done to the inputs is chosen with weights that are rounded to their nearest values. The weights then compensate
for each other's errors, if enough of the samples' inputs are known.

Shapes: R rows, N outputs, K inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ternvl.kernels.rounding import factor_of
from ternvl.kernels.stage import Stage, from_panels, unpack
from ternvl.kernels.stage_formats import pack_affine4, pack_int4, pack_int8, transformed
from ternvl.kernels.stage_types import After, Format, FourBits, Layer, Norm

BOUNDS = {Format.INT8: 0.03, Format.INT4: 0.15, Format.AFFINE4: 0.03}
"""The largest root-mean-square error of a stage's products in each format, relative to the size of the products."""
_GOOD = {Format.INT8: 0.011, Format.INT4: 0.0}
"""The error up to which inputs are left as they are. It is what 8 bits cost where no input is much larger than the
others."""
_BLOCKS = (16, 256)
"""The least and the most inputs that are mixed with each other."""
INPUTS_A_ROW = 4
"""Weights compensate only with at most this many inputs for each row: with more, it overfits."""
_SMOOTHINGS = (0.5, 0.75)
_SMOOTHED_FROM = {Format.INT8: 0.015, Format.INT4: 0.1}
"""The error above which smoothing is tried."""
_ROWS = 32
"""The rows whose products are in memory at a time."""

_MOST_KEPT = 2**23
"""The most products of the unquantised stage that are kept for all tries; of more, they are computed for each."""

Try = tuple[str, Stage, float]
"""A try: its label, the stage and its error."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What is known of a stage's inputs on the samples."""

    rows: Tensor
    """[R, K], the rows on which errors are measured, all of the same size: a large row shall not hide the others."""
    largest: Tensor
    """[K], the largest size of each input."""
    moments: Tensor | None
    """[K, K], the mean products of two inputs over other such rows; None with too few rows or too many inputs."""

    def factor(self, smoothing: Tensor | None, mixed: int) -> Tensor:
        """Return `rounding.factor_of` the smoothed and mixed inputs."""
        assert self.moments is not None
        moments = self.moments if smoothing is None else self.moments * smoothing * smoothing[:, None]
        return factor_of(transformed(transformed(moments, mixed).T, mixed))


@dataclass(frozen=True, slots=True)
class _How:
    """What is done to the inputs of a stage."""

    label: str
    smoothing: Tensor | None = None
    mixed: int = 0


def tries(plain: Stage, layer: Layer, inputs: Inputs, format: Format) -> Iterator[Try]:
    """Yield a stage in a format with its error, in several ways: the last ones need not be the best.

    `inputs` are those of the unquantised stage `plain`, which was packed from `layer`. No stage is kept here, because
    those of an output head have 100 MB each.
    """
    wanted = _products(plain, inputs.rows)
    if plain.out_features * len(inputs.rows) <= _MOST_KEPT:
        wanted = list(wanted)
    least, how = float("inf"), _How(format.name.lower())

    def made(each: _How, *, compensates: bool = False) -> Try:
        nonlocal least, how
        factor = inputs.factor(each.smoothing, each.mixed) if compensates else None
        if format is Format.INT8:
            stage = pack_int8(layer, each.smoothing, mixed=each.mixed, factor=factor)
        else:
            rows = transformed(inputs.rows if each.smoothing is None else inputs.rows * each.smoothing, each.mixed)
            importance = rows.square().mean(dim=0)
            stage = pack_int4(layer, each.smoothing, importance, mixed=each.mixed, factor=factor)
        exact = wanted if isinstance(wanted, list) else _products(plain, inputs.rows)
        error = _error(zip(_products(stage, inputs.rows), exact, strict=True))
        if error < least:
            least, how = error, each
        return (f"{each.label}, compensated" if compensates else each.label), stage, error

    yield made(how)
    block = block_of(plain.in_features)
    if least > _GOOD[format] and block:
        yield made(_How(f"{how.label}, mixed", mixed=block))
    if least > _SMOOTHED_FROM[format]:
        for strength in _SMOOTHINGS:
            label = f"{format.name.lower()}, smoothed by {strength}"
            smoothing = smoothing_of(layer.weight, inputs.largest, strength)
            yield made(_How(label, smoothing))
            if block:
                yield made(_How(f"{label}, mixed", smoothing, block))
    if inputs.moments is not None:
        yield made(how, compensates=True)


def kept_try(plain: Stage, layer: Layer, rows: Tensor, kept: FourBits) -> Try:
    """Return a stage with the checkpoint's own weights of 4 bits. Its error is that of rounding the inputs."""
    stage = pack_affine4(layer, kept)
    return "affine4", stage, stage_error(stage, plain, rows)


def block_of(num_inputs: int) -> int:
    """Return how many inputs are mixed with each other: the largest power of two that divides their number, or 0."""
    least, most = _BLOCKS
    block = min(most, num_inputs & -num_inputs)
    return block if block >= least else 0


def smoothing_of(weight: Tensor, largest: Tensor, strength: float) -> Tensor:
    """Return the factors [K] of inputs that make large channels smaller and the weights for them larger.

    `largest` [K] is the largest input of each channel; `strength` from 0 to 1 says how much scale moves to the weights.
    """
    of_inputs = largest.clamp_min(1e-5)
    of_weights = torch.maximum(weight.amax(dim=0), -weight.amin(dim=0)).float().clamp_min(1e-5)
    factor = of_weights.pow(1 - strength) / of_inputs.pow(strength)
    return factor / factor.log().mean().exp()


def stage_error(stage: Stage, plain: Stage, rows: Tensor) -> float:
    """Return the error of a stage's products of rows [R, K] relative to those of `plain`, as `relative_error` does."""
    return _error(zip(_products(stage, rows), _products(plain, rows), strict=True))


def _products(stage: Stage, rows: Tensor) -> Iterable[Tensor]:
    return (stage.product(some) for some in rows.split(_ROWS))


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """Return the root-mean-square error relative to the size of `wanted`; infinity if a value is NaN or infinite."""
    return _error(zip(got.split(_ROWS), wanted.split(_ROWS), strict=True))


def _error(pieces: Iterable[tuple[Tensor, Tensor]]) -> float:
    sums = torch.zeros(2, dtype=torch.float64)
    for got, wanted in pieces:  # in pieces, because an output head has 150,000 outputs
        exact = wanted.double()
        sums += torch.stack([(got.double() - exact).square().sum(), exact.square().sum()])
    error = sums[0].sqrt() / sums[1].sqrt().clamp_min(1e-12)
    return float(error) if bool(error.isfinite()) else float("inf")


def layer_of(stage: Stage) -> Layer:
    """Recover the weights that an unquantised stage was packed from."""
    weight, _ = unpack(stage)
    norm = None if stage.norm_weight is None else Norm(stage.norm_weight, stage.norm_bias, stage.eps)
    bias = None if stage.bias is None else from_panels(stage, stage.bias)
    return Layer(weight, bias, norm, After(stage.after))
