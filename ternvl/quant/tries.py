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


def tries(plain: Stage, layer: Layer, inputs: Inputs, format: Format) -> Iterator[Try]:
    """Yield a stage in a format with its error, in several ways: the last ones need not be the best.

    `inputs` are those of the unquantised stage `plain`, which was packed from `layer`.
    """

    def made(smoothing: Tensor | None, mixed: int, *, label: str, compensates: bool = False) -> Try:
        factor = inputs.factor(smoothing, mixed) if compensates else None
        if format is Format.INT8:
            stage = pack_int8(layer, smoothing, mixed=mixed, factor=factor)
        else:
            rows = transformed(inputs.rows if smoothing is None else inputs.rows * smoothing, mixed)
            stage = pack_int4(layer, smoothing, rows.square().mean(dim=0), mixed=mixed, factor=factor)
        return label, stage, stage_error(stage, plain, inputs.rows)

    name = format.name.lower()
    found = [made(None, 0, label=name)]
    block = block_of(plain.in_features)
    if found[0][2] > _GOOD[format] and block:
        found.append(made(None, block, label=f"{name}, mixed"))
    if min(error for _, _, error in found) > _SMOOTHED_FROM[format]:
        for strength in _SMOOTHINGS:
            smoothing = smoothing_of(layer.weight, inputs.largest, strength)
            found.append(made(smoothing, 0, label=f"{name}, smoothed by {strength}"))
            if block:
                found.append(made(smoothing, block, label=f"{name}, smoothed by {strength}, mixed"))
    yield from found
    if inputs.moments is not None:
        label, best, _ = min(found, key=lambda each: each[2])
        yield made(best.smoothing, best.mixed, label=f"{label}, compensated", compensates=True)


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
    return _error((stage.product(some), plain.product(some)) for some in rows.split(_ROWS))


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
