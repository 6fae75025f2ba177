"""Tensor names, mapped from any of the three checkpoint layouts to the original one, which the modules use.

original      `vision_model.*`, `mlp1.*`, `language_model.model.*`, `language_model.lm_head.*`
HF, older     `vision_tower.*`, `multi_modal_projector.*`, `language_model.model.*`, `language_model.lm_head.*`
HF, newer     `model.vision_tower.*`, `model.multi_modal_projector.*`, `model.language_model.*`, `lm_head.*`
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple


class Destination(NamedTuple):
    """The parameter that a tensor of a checkpoint belongs to."""

    name: str
    """Its name in the original layout."""
    third: int | None = None
    """0, 1 or 2 for a query, key or value matrix, which are stacked in that order; None for a whole tensor."""


_VISION = r"^(?:model\.)?vision_tower\."
_LAYER = _VISION + r"encoder\.layer\.(\d+)\."
_PROJECTOR = r"^(?:model\.)?multi_modal_projector\."
_RENAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^lm_head\.", r"language_model.lm_head."),
        (r"^model\.language_model\.", r"language_model.model."),
        (_PROJECTOR + r"layer_norm\.", r"mlp1.0."),
        (_PROJECTOR + r"linear_1\.", r"mlp1.1."),
        (_PROJECTOR + r"linear_2\.", r"mlp1.3."),
        (_VISION + r"embeddings\.cls_token$", r"vision_model.embeddings.class_embedding"),
        (_VISION + r"embeddings\.position_embeddings$", r"vision_model.embeddings.position_embedding"),
        (_VISION + r"embeddings\.patch_embeddings\.projection\.", r"vision_model.embeddings.patch_embedding."),
        (_LAYER + r"attention\.projection_layer\.", r"vision_model.encoder.layers.\1.attn.proj."),
        (_LAYER + r"layernorm_before\.", r"vision_model.encoder.layers.\1.norm1."),
        (_LAYER + r"layernorm_after\.", r"vision_model.encoder.layers.\1.norm2."),
        (_LAYER + r"lambda_([12])$", r"vision_model.encoder.layers.\1.ls\2"),
        (_LAYER + r"mlp\.", r"vision_model.encoder.layers.\1.mlp."),
    )
)
_QKV = re.compile(_LAYER + r"attention\.([qkv])_proj\.(weight|bias)$")
# Constants that some exports hold beside the weights. The model computes or does not need them.
_HARMLESS = re.compile(r"(rotary_emb\.inv_freq|\.position_ids|\.embeddings\.mask_token)$")


def layout_of(names: Iterable[str]) -> str:
    """Return the layout that the names of a checkpoint's tensors have: original, HF-native or HF-native, older."""
    for name in names:
        if name.startswith("model.vision_tower."):
            return "HF-native"
        if name.startswith("vision_tower."):
            return "HF-native, older"
    return "original"


def remap(name: str) -> Destination | None:
    """Return the destination of a checkpoint's tensor, or None if the tensor is known and not needed.

    A name that is in no layout is its own destination, and the caller finds that the model has no such parameter.
    """
    if _HARMLESS.search(name):
        return None
    if match := _QKV.match(name):
        layer, which, kind = match.groups()
        return Destination(f"vision_model.encoder.layers.{layer}.attn.qkv.{kind}", "qkv".index(which))
    for pattern, replacement in _RENAMES:
        renamed, count = pattern.subn(replacement, name)
        if count:
            return Destination(renamed)
    return Destination(name)
