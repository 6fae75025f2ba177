"""Weights to stages: packed as they are, or as whole numbers of 8 or 4 bits; and back.

Shapes: N outputs, K inputs, G groups of 32 inputs; panels of 16 outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from ternvl.kernels import dispatch, int4_rounding, reference
from ternvl.kernels.int4_rounding import GROUP
from ternvl.kernels.native import PANEL

if TYPE_CHECKING:
    from ternvl.kernels.stage import After, Norm, Stage

_INT4_SCALES, _INT4_BYTES = 2 * PANEL, 2 * PANEL + PANEL * GROUP // 2


@dataclass(frozen=True, slots=True)
class Layer:
    """What a stage is made from."""

    weight: Tensor
    """[N, K]; of SwiGLU the gates, then the ups."""
    bias: Tensor | None
    norm: Norm | None
    after: After


def pack(layer: Layer) -> Stage:
    """The very weights: bfloat16 stays so, all else becomes float32."""
    from ternvl.kernels.stage import Format, Stage

    is_short = layer.weight.dtype == torch.bfloat16
    weight = layer.weight.detach() if is_short else layer.weight.detach().float()
    panels = dispatch.pack(weight)
    bias = None if layer.bias is None else layer.bias.detach().float()
    return Stage(
        _size(layer), Format.BFLOAT16 if is_short else Format.FLOAT32, layer.after, panels, bias=bias, norm=_norm(layer)
    )


def pack_int8(layer: Layer, smoothing: Tensor | None = None) -> Stage:
    """Whole numbers from -127 to 127, one scale an output. `smoothing` [K] is what inputs are multiplied by."""
    from ternvl.kernels.stage import Format, Stage

    weight = _smoothed(layer, smoothing)
    scales = weight.abs().amax(dim=1) / 127
    whole = torch.round(weight / torch.where(scales > 0, scales, 1.0)[:, None]).to(torch.int8)
    panels, offsets = dispatch.pack_int8(_in_panels(layer, whole))
    return Stage(
        *(_size(layer), Format.INT8, layer.after, panels),
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
    """Whole numbers from -8 to 7, one scale in bfloat16 for each 32 inputs of an output: of some candidates the one
    with the least squared error, in which an input counts by its `importance` [K]. With inputs [R, K] to `compensate`
    for, as they come before smoothing, weights take back each other's errors."""
    from ternvl.kernels.stage import Format, Stage

    weight = _smoothed(layer, smoothing)
    if compensate is None:
        whole, scales = int4_rounding.nearest(weight, importance)
    else:
        whole, scales = int4_rounding.compensated(weight, compensate if smoothing is None else compensate * smoothing)
    panels = dispatch.pack_int4(_in_panels(layer, whole), _in_panels(layer, scales))
    return Stage(
        *(_size(layer), Format.INT4, layer.after, panels),
        bias=_bias(layer),
        smoothing=smoothing,
        norm=_norm(layer),
    )


def unpack(stage: Stage) -> tuple[Tensor, Tensor | None]:
    """Weights [N, K] as they are stored, and what 1 stands for: [N, 1] or [N, G]; None where they are not scaled."""
    name, n, k = stage.format.name, stage.out_features, stage.in_features
    if name == "INT8":
        assert stage.scales is not None
        panels = stage.panels.view(-1, -(-k // 4), PANEL, 4).transpose(1, 2).flatten(2).flatten(0, 1)[:, :k]
        return from_panels(stage, panels), from_panels(stage, stage.scales)[:, None]
    if name == "INT4":
        groups = -(-k // GROUP)
        panels = stage.panels.view(-1, groups, _INT4_BYTES)
        scales = panels[..., :_INT4_SCALES].contiguous().view(torch.bfloat16).transpose(1, 2).flatten(0, 1)
        runs = panels[..., _INT4_SCALES:].reshape(-1, groups, 4, PANEL, 4)  # a run's bytes, output by output
        both = torch.stack([runs & 15, runs >> 4], dim=4).to(torch.int8) - 8  # [panels, G, runs, 16, half, 4]
        whole = both.permute(0, 3, 1, 2, 4, 5).flatten(2).flatten(0, 1)[:, :k]
        return from_panels(stage, whole), from_panels(stage, scales).float()
    return reference.unpack(stage.panels, n), None


def from_panels(stage: Stage, values: Tensor) -> Tensor:
    """Rows [padded N, ...] in the order of panels -> [N, ...]."""
    if stage.after.name != "SWIGLU" or stage.format.name in ("FLOAT32", "BFLOAT16"):
        return values[: stage.out_features]
    pairs: Tensor = values.unflatten(0, (-1, 2, PANEL)).transpose(0, 1).flatten(1, 2)  # [2, padded F, ...]
    return pairs[:, : stage.num_outputs].flatten(0, 1)


def _in_panels(layer: Layer, values: Tensor) -> Tensor:
    """Rows [N, ...] in the order of panels, padded with zeros: of SwiGLU gates and ups take turns by panels."""
    pad = (0, 0) * (values.dim() - 1)
    if layer.after.name != "SWIGLU":
        return F.pad(values, (*pad, 0, -len(values) % PANEL))
    halves: Tensor = values.unflatten(0, (2, -1))
    halves = F.pad(halves, (*pad, 0, -halves.shape[1] % PANEL))
    turns: Tensor = halves.unflatten(1, (-1, PANEL)).transpose(0, 1).flatten(0, 2)
    return turns.contiguous()


def _size(layer: Layer) -> tuple[int, int]:
    n, k = layer.weight.shape
    return n, k


def _smoothed(layer: Layer, smoothing: Tensor | None) -> Tensor:
    weight = layer.weight.detach().float()
    return weight if smoothing is None else weight / smoothing


def _bias(layer: Layer) -> Tensor | None:
    return None if layer.bias is None else _in_panels(layer, layer.bias.detach().float())


def _norm(layer: Layer) -> Norm | None:
    from ternvl.kernels.stage import Norm

    norm = layer.norm
    if norm is None:
        return None
    return Norm(norm.weight.detach().float(), None if norm.bias is None else norm.bias.detach().float(), norm.eps)
