"""Makes stages of layers: with the weights as they are, or with weights of 8 or 4 bits.

Shapes: N outputs, K inputs, R rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ternvl.kernels import panels, rounding
from ternvl.kernels.panels import PANEL
from ternvl.kernels.rounding import mix
from ternvl.kernels.stage import Stage
from ternvl.kernels.stage_types import After, Format, FourBits, Layer, Norm

_ROWS = 4096
"""The outputs that are packed at a time, whole panels: of an output head, all at once would take a gigabyte."""
_BY_OUTPUT = ("panels", "scales", "offsets", "bias")
"""The tensors of a stage with a row for each output, or for each panel."""


def pack(layer: Layer) -> Stage:
    """Keep the weights: bfloat16 stays bfloat16, every other type becomes float32."""
    is_short = layer.weight.dtype == torch.bfloat16
    weight = layer.weight.detach() if is_short else layer.weight.detach().float()
    bias = None if layer.bias is None else layer.bias.detach().float()
    format = Format.BFLOAT16 if is_short else Format.FLOAT32
    return Stage(_size(layer), format, layer.after, panels.pack(weight), bias=bias, norm=_norm(layer))


def transformed(x: Tensor, block: int) -> Tensor:
    """Return the same as `mix` up to rounding, faster for many rows: x [R, K]; x itself if `block` is 0."""
    if not block:
        return x
    whole: Tensor = x.unflatten(-1, (-1, block)) @ mix(torch.eye(block), block)
    return whole.flatten(-2)


def pack_int8(layer: Layer, smoothing: Tensor | None = None, *, mixed: int = 0, factor: Tensor | None = None) -> Stage:
    """Round the weights to whole numbers from -127 to 127 with one scale for each output.

    `smoothing` [K] are factors of the inputs, by which the weights are divided first. Inputs are then mixed in blocks
    of `mixed`, and so are the weights. Given the `rounding.factor_of` inputs that were smoothed and mixed so, later
    weights compensate for the rounding errors of earlier ones.
    """

    def packed(part: Layer) -> Stage:
        weight = _prepared(part.weight, smoothing, mixed)
        if factor is None:
            whole, scales = rounding.nearest_int8(weight)
        else:
            whole, scales = rounding.compensated_int8(weight, factor)
        rows, offsets = panels.pack_int8(_in_panels(part, whole))
        return Stage(
            *(_size(part), Format.INT8, part.after, rows),
            scales=_in_panels(part, scales),
            offsets=offsets,
            bias=_bias(part),
            smoothing=smoothing,
            norm=_norm(part),
            mixed=mixed,
        )

    return _in_parts(layer, packed)


def pack_int4(
    layer: Layer,
    smoothing: Tensor | None = None,
    importance: Tensor | None = None,
    *,
    mixed: int = 0,
    factor: Tensor | None = None,
) -> Stage:
    """Round the weights to whole numbers from -8 to 7 with one bfloat16 scale for each 32 inputs of an output.

    Without `factor` each scale is the candidate with the least squared error, in which an input is weighted by its
    `importance` [K], as it is after smoothing and mixing. The other parameters are as in `pack_int8`.
    """

    def packed(part: Layer) -> Stage:
        weight = _prepared(part.weight, smoothing, mixed)
        if factor is None:
            whole, scales = rounding.nearest_int4(weight, importance)
        else:
            whole, scales = rounding.compensated_int4(weight, factor)
        rows = panels.pack_int4(_in_panels(part, whole), _in_panels(part, scales))
        return Stage(
            *(_size(part), Format.INT4, part.after, rows),
            bias=_bias(part),
            smoothing=smoothing,
            norm=_norm(part),
            mixed=mixed,
        )

    return _in_parts(layer, packed)


def pack_affine4(layer: Layer, weights: FourBits) -> Stage:
    """Keep weights of 4 bits as they are. `weights` are those of the layer, whose own `weight` only gives the size."""
    rows = panels.pack_affine4(*(_in_panels(layer, each) for each in weights))
    return Stage(_size(layer), Format.AFFINE4, layer.after, rows, bias=_bias(layer), norm=_norm(layer))


def _in_parts(layer: Layer, pack: Callable[[Layer], Stage]) -> Stage:
    """Pack some outputs at a time if there are many, which saves memory. Outputs do not depend on each other.

    The gates and ups of SwiGLU are packed at once, because their panels alternate.
    """
    num_outputs = len(layer.weight)
    if num_outputs <= _ROWS or layer.after is After.SWIGLU:
        return pack(layer)
    whole: dict[str, Tensor] = {}
    for first in range(0, num_outputs, _ROWS):
        bias = None if layer.bias is None else layer.bias[first : first + _ROWS]
        part = pack(Layer(layer.weight[first : first + _ROWS], bias, layer.norm, layer.after))
        for name in _BY_OUTPUT:
            if (rows := getattr(part, name)) is not None:
                outputs_a_row = PANEL if name == "panels" else 1
                size = -(-num_outputs // PANEL) * PANEL // outputs_a_row
                whole.setdefault(name, rows.new_empty(size, *rows.shape[1:]))
                whole[name][first // outputs_a_row :][: len(rows)] = rows
    return Stage(
        _size(layer), part.format, layer.after, **whole, smoothing=part.smoothing, norm=_norm(layer), mixed=part.mixed
    )


def _in_panels(layer: Layer, values: Tensor) -> Tensor:
    """Rows [N, ...] in the order of panels, padded with zeros. For SwiGLU panels of gates and of ups alternate."""
    pad = (0, 0) * (values.dim() - 1)
    if layer.after is not After.SWIGLU:
        return F.pad(values, (*pad, 0, -len(values) % PANEL))
    halves: Tensor = values.unflatten(0, (2, -1))
    halves = F.pad(halves, (*pad, 0, -halves.shape[1] % PANEL))
    turns: Tensor = halves.unflatten(1, (-1, PANEL)).transpose(0, 1).flatten(0, 2)
    return turns.contiguous()


def _size(layer: Layer) -> tuple[int, int]:
    n, k = layer.weight.shape
    return n, k


def _prepared(weight: Tensor, smoothing: Tensor | None, mixed: int) -> Tensor:
    """Return weights [N, K] in float32 that undo what is done to the inputs."""
    weight = weight.detach().float()
    weight = weight if smoothing is None else weight / smoothing
    return transformed(weight, mixed) / mixed if mixed else weight


def _bias(layer: Layer) -> Tensor | None:
    return None if layer.bias is None else _in_panels(layer, layer.bias.detach().float())


def _norm(layer: Layer) -> Norm | None:
    norm = layer.norm
    if norm is None:
        return None
    return Norm(norm.weight.detach().float(), None if norm.bias is None else norm.bias.detach().float(), norm.eps)
