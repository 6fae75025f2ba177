"""Names of an adapter's tensors: from PEFT's to the modules of the original layout.

PEFT puts `base_model.model.` before the name that a module has in the model that was trained, which may be

the original       `language_model.model.layers.N...`, `mlp1.N`, `vision_model.encoder.layers.N...`
HF, either kind    `model.language_model.layers.N...`, `model.vision_tower.encoder.layer.N...`, ... (`remap.py`)
one part alone     `model.layers.N...` or `layers.N...` of the decoder, `encoder.layers.N...` of the vision tower
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ternvl.checkpoint.names import remap

_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")
_PARTS = (
    (re.compile(r"^(?=model\.layers\.)"), "language_model."),
    (re.compile(r"^(?=layers\.)"), "language_model.model."),
    (re.compile(r"^(?=encoder\.layers\.)"), "vision_model."),
    (re.compile(r"^(?=encoder\.layer\.)"), "vision_tower."),
)


class Place(NamedTuple):
    """What a tensor of an adapter is part of."""

    trained: str
    """The module's name in the model that was trained, by which the adapter's patterns call it."""
    module: str
    """Its name in the original layout."""
    third: int | None
    """0, 1, 2 where it is the query, key or value of a module that stacks them; None for a whole module."""
    side: str
    """"A" or "B"."""


def place(key: str) -> Place | None:
    """The place of an adapter's tensor; None for a key that is not a matrix of a linear layer's adapter."""
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    trained = match["module"]
    name = trained
    for pattern, prefix in _PARTS:
        name = pattern.sub(prefix, name)
    target = remap(f"{name}.weight")
    if target is None:
        return None
    return Place(trained, target.name.removesuffix(".weight"), target.third, match["side"])
