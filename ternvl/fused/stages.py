"""Making stages from a model's layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ternvl.kernels.stage import Stage
from ternvl.kernels.stage_formats import pack
from ternvl.kernels.stage_types import After, Layer, Norm
from ternvl.model.language import RMSNorm


def stage_of(
    linears: list[nn.Linear], norm: Norm | None = None, after: After = After.NOTHING, scale: Tensor | None = None
) -> Stage:
    """Make a stage of layers with the same input, whose outputs follow each other.

    `scale` [N] is multiplied into the weights and the bias.
    """
    return pack(layer_of(linears, norm, after, scale))


def layer_of(
    linears: list[nn.Linear], norm: Norm | None = None, after: After = After.NOTHING, scale: Tensor | None = None
) -> Layer:
    """Return what `stage_of` packs."""
    weight = torch.cat([linear.weight for linear in linears]) if len(linears) > 1 else linears[0].weight
    biases = [linear.bias for linear in linears]
    bias = None if biases[0] is None else torch.cat([each.float() for each in biases])
    if scale is not None:
        weight = weight.float() * scale.float()[:, None]
        bias = None if bias is None else bias * scale.float()
    return Layer(weight.to(torch.float32) if weight.dtype == torch.float16 else weight, bias, norm, after)


def norm_of(module: nn.Module) -> Norm:
    """Return a norm's weights and epsilon in the form that a stage takes."""
    assert isinstance(module, RMSNorm | nn.LayerNorm)
    bias = None if isinstance(module, RMSNorm) else module.bias
    return Norm(module.weight, bias, module.eps)
