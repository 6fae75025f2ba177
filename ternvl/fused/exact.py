"""Preparing a loaded model to compute on the CPU in float32 with exactly its checkpoint's values.

Modules are replaced under their names; the model's own code has no part in it.
"""

from __future__ import annotations

import torch
from torch import nn

from ternvl.fused.packed import GELU, PackedLinear, PackedPatches, WideEmbedding
from ternvl.fused.replace import fuse_language
from ternvl.kernels.loader import available
from ternvl.model.internvl import InternVL


def prepare(model: InternVL) -> None:
    """Replace the modules that the kernels compute faster, and convert the rest to float32, in place.

    The decoder is fused into stages. The vision tower is not, because its stages would contain the products of weights
    and layer scales, which are rounded and take more memory. Matrices and embeddings in bfloat16 keep that type in
    memory, and their results are float32. Each original is freed as soon as it is packed. Without the kernels the whole
    model is converted to float32. The model must be on the CPU and frozen.
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
    """bfloat16 stays; float16 becomes float32, because bfloat16 does not hold all of its values."""
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
