"""Makes stages of layers: with the weights as they are, or with weights of 8 or 4 bits.

Shapes: N outputs, K inputs, R rows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ternvl.kernels import int4_rounding, panels
from ternvl.kernels.panels import PANEL
from ternvl.kernels.stage import Stage
from ternvl.kernels.stage_types import After, Format, Layer, Norm

_ROWS = 4096
"""The outputs whose weights are in float32 at a time: of an output head they would take gigabytes."""


def pack(layer: Layer) -> Stage:
    """Keep the weights: bfloat16 stays bfloat16, every other type becomes float32."""
    is_short = layer.weight.dtype == torch.bfloat16
    weight = layer.weight.detach() if is_short else layer.weight.detach().float()
    bias = None if layer.bias is None else layer.bias.detach().float()
    format = Format.BFLOAT16 if is_short else Format.FLOAT32
    return Stage(_size(layer), format, layer.after, panels.pack(weight), bias=bias, norm=_norm(layer))


def pack_int8(layer: Layer, smoothing: Tensor | None = None) -> Stage:
    """Round the weights to whole numbers from -127 to 127 with one scale for each output.

    `smoothing` [K] are factors of the inputs, by which the weights are divided first.
    """
    pieces = [_whole(_smoothed(piece, smoothing)) for piece in layer.weight.split(_ROWS)]
    whole, scales = (torch.cat(each) for each in zip(*pieces, strict=True))
    packed, offsets = panels.pack_int8(_in_panels(layer, whole))
    return Stage(
        *(_size(layer), Format.INT8, layer.after, packed),
        scales=_in_panels(layer, scales),
        offsets=offsets,
        bias=_bias(layer),
        smoothing=smoothing,
        norm=_norm(layer),
    )


def pack_int4(
    layer: Layer,
    smoothing: Tensor | None = None,
    importance: Tensor | None = None,
    *,
    compensate: Tensor | None = None,
) -> Stage:
    """Round the weights to whole numbers from -8 to 7 with one bfloat16 scale for each 32 inputs of an output.

    Each scale is the candidate with the least squared error, in which an input is weighted by its `importance` [K].
    Given sample inputs `compensate` [R, K], before smoothing, later weights compensate for the rounding errors of
    earlier ones. `smoothing` [K] is as in `pack_int8`.
    """
    weight = _smoothed(layer.weight, smoothing)
    if compensate is None:
        whole, scales = int4_rounding.nearest(weight, importance)
    else:
        whole, scales = int4_rounding.compensated(weight, compensate if smoothing is None else compensate * smoothing)
    packed = panels.pack_int4(_in_panels(layer, whole), _in_panels(layer, scales))
    return Stage(
        *(_size(layer), Format.INT4, layer.after, packed),
        bias=_bias(layer),
        smoothing=smoothing,
        norm=_norm(layer),
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


def _whole(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round weights [N, K] to 8 bits; return them with the scales [N]."""
    scales = weight.abs().amax(dim=1) / 127
    return torch.round(weight / torch.where(scales > 0, scales, 1.0)[:, None]).to(torch.int8), scales


def _smoothed(weight: Tensor, smoothing: Tensor | None) -> Tensor:
    weight = weight.detach().float()
    return weight if smoothing is None else weight / smoothing


def _bias(layer: Layer) -> Tensor | None:
    return None if layer.bias is None else _in_panels(layer, layer.bias.detach().float())


def _norm(layer: Layer) -> Norm | None:
    norm = layer.norm
    if norm is None:
        return None
    return Norm(norm.weight.detach().float(), None if norm.bias is None else norm.bias.detach().float(), norm.eps)
