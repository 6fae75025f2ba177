"""A stage in 8 or 4 bits, without and with smoothing and compensation, each with the error that it makes.

Shapes: R rows, N outputs, K inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ternvl.kernels.stage import Stage, from_panels, unpack
from ternvl.kernels.stage_formats import pack_affine4, pack_int4, pack_int8
from ternvl.kernels.stage_types import After, Format, FourBits, Layer, Norm

BOUNDS = {Format.INT8: 0.03, Format.INT4: 0.15, Format.AFFINE4: 0.03}
"""The largest root-mean-square error of a stage's products in each format, relative to the size of the products."""
_HELD_OUT = 5
"""In 4 bits, one row in this many is held out of the compensation, and the error is measured on these rows."""
_INPUTS_A_ROW = 4
"""Compensation is only tried with at most this many inputs for each row: with more, it is slow and overfits."""
_SMOOTHINGS = (0.5, 0.75)
_ROWS = 32
"""The rows whose products are in memory at a time."""

Try = tuple[str, Stage, float]
"""A try: its label, the stage and its error."""


def kept_try(plain: Stage, layer: Layer, rows: Tensor, kept: FourBits) -> Try:
    """Return a stage with the checkpoint's own weights of 4 bits. Its error is that of rounding the inputs."""
    stage = pack_affine4(layer, kept)
    return "affine4", stage, stage_error(stage, plain, rows)


def int8_tries(plain: Stage, layer: Layer, rows: Tensor, largest: Tensor) -> Iterator[Try]:
    """Yield a stage in 8 bits with its error: as it is and, unless that is good, with smoothing.

    `rows` [R, K] are inputs of the unquantised stage `plain`, which was packed from `layer`; `largest` [K] is the
    largest input of each channel.
    """
    stage = pack_int8(layer)
    error = stage_error(stage, plain, rows)
    yield "int8", stage, error
    if error <= BOUNDS[Format.INT8] / 2:
        return  # good without smoothing, which is work in each call
    for strength in _SMOOTHINGS:
        stage = pack_int8(layer, smoothing_of(layer.weight, largest, strength))
        yield f"int8, smoothed by {strength}", stage, stage_error(stage, plain, rows)


def int4_tries(plain: Stage, layer: Layer, rows: Tensor, largest: Tensor) -> Iterator[Try]:
    """Yield a stage in 4 bits with its error, as `int8_tries` does, also with compensation if there are enough rows."""
    is_held_out = torch.arange(len(rows)) % _HELD_OUT == 0
    held_out, seen = rows[is_held_out], rows[~is_held_out] if len(rows) > 1 else rows

    def made(label: str, smoothing: Tensor | None, compensate: bool) -> Try:
        inputs = seen if smoothing is None else seen * smoothing
        importance = inputs.square().mean(dim=0)
        stage = pack_int4(layer, smoothing, importance, compensate=seen if compensate else None)
        return label, stage, stage_error(stage, plain, held_out)

    can_compensate = len(seen) * _INPUTS_A_ROW >= rows.shape[1]
    tries = [made("int4", None, False)] + ([made("int4, compensated", None, True)] if can_compensate else [])
    yield from tries
    if min(error for _, _, error in tries) <= BOUNDS[Format.INT4]:
        return  # good without smoothing, which is work in each call
    for strength in _SMOOTHINGS:
        label = f"int4, smoothed by {strength}{', compensated' if can_compensate else ''}"
        yield made(label, smoothing_of(layer.weight, largest, strength), can_compensate)


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
