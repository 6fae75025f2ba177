"""How many bytes a model's weights take in each precision, computed from its sizes alone."""

from __future__ import annotations

import torch
from torch import nn

from ternvl.checkpoint.stored import StoredWeights
from ternvl.config import ModelConfig
from ternvl.kernels.panels import GROUP
from ternvl.model.internvl import InternVL

_INT4_BYTES = 0.5 + 2 / GROUP
"""The bytes of a weight of 4 bits with its share of a scale in bfloat16."""
_AFFINE4_BYTES = 0.5 + 8 / GROUP
"""The same with a scale and an offset in float32."""
_OUTPUT_BYTES = 8
"""The scale and the offset of an output in 8 bits."""


def weight_bytes(config: ModelConfig, scheme: str, stored: StoredWeights | None = None) -> int:
    """Return the bytes of the weights of a model of these sizes on a CPU in a scheme, or in "none".

    `stored` are the weights of a checkpoint that is quantised already. Where the guard leaves layers in more bits, the
    model is larger.
    """
    four_bits = stored.names() if stored is not None and scheme == "checkpoint" else set()
    blocks = None if stored is None or scheme == "none" else stored.embedding()
    itemsize = getattr(torch, config.dtype).itemsize
    with torch.device("meta"):
        model = InternVL(config)
    total = 0.0
    for name, module in model.named_modules():
        own = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        if isinstance(module, nn.Linear):
            kept = f"{name}.weight" in four_bits
            total += linear_bytes(name, module, "affine4" if kept else scheme, itemsize)
        elif isinstance(module, nn.Embedding):
            total += own * itemsize if blocks is None else blocks[0].nbytes
        else:
            total += own * (itemsize if scheme == "none" else 4)
    return round(total)


def linear_bytes(name: str, linear: nn.Linear, scheme: str, stored: int) -> float:
    """Return the bytes of one layer; `stored` are those of a weight that is not quantised."""
    weights, bias = linear.weight.numel(), 0 if linear.bias is None else linear.bias.numel()
    if scheme == "none":
        return (weights + bias) * stored
    if scheme == "int4" and name.startswith("language_model."):
        return weights * _INT4_BYTES + 4 * bias
    if scheme == "affine4":
        return weights * _AFFINE4_BYTES + 4 * bias
    return weights + _OUTPUT_BYTES * linear.out_features + 4 * bias
