"""Makes a loaded model one that computes on the CPU in float32 with exactly its checkpoint's values.

The model knows nothing of it: modules are replaced from outside, under their names.
"""

from __future__ import annotations

import torch
from torch import nn

from ternvl.fused.packed import GELU, PackedLinear, PackedPatches, WideEmbedding
from ternvl.fused.replace import fuse_language
from ternvl.kernels.loader import available
from ternvl.model.internvl import InternVL


def prepare(model: InternVL) -> None:
    """Replace what the kernels compute better, and bring the rest to float32, in place.

    The decoder becomes stages. The tower does not: its stages hold products of stored values, which are rounded and
    larger. Matrices and embeddings that are bfloat16 stay so in memory; what they give is float32. Each original is let
    go as soon as it is packed. Without the kernels the whole model becomes float32. The model is on the CPU and frozen.
    """
    if available():
        fuse_language(model)
        _replace(model)
    else:
        model.float()


def _replace(module: nn.Module) -> None:
    if isinstance(module, WideEmbedding):
        return
    for name, child in list(module.named_children()):
        replacement = _replacement(child)
        if replacement is None:
            _replace(child)
        else:
            setattr(module, name, replacement)
    for parameter in module.parameters(recurse=False):
        parameter.data = parameter.data.float()


def _replacement(module: nn.Module) -> nn.Module | None:
    if isinstance(module, nn.Linear):
        return PackedLinear.from_linear(module, _storage(module.weight.dtype))
    if isinstance(module, nn.Conv2d):
        return PackedPatches(module, _storage(module.weight.dtype))
    if isinstance(module, nn.GELU):
        return GELU()
    return None


def _storage(dtype: torch.dtype) -> torch.dtype:
    """float16 has values that bfloat16 has not."""
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
