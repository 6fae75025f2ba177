"""Names of an adapter's tensors, mapped from PEFT's to the modules of the original layout.

PEFT puts `base_model.model.` before the name of a module in the trained model, which is one of:

the original       `language_model.model.layers.N...`, `mlp1.N`, `vision_model.encoder.layers.N...`
HF, either kind    `model.language_model.layers.N...`, `model.vision_tower.encoder.layer.N...`, ...
one part only      `model.layers.N...` or `layers.N...` of the decoder, `encoder.layers.N...` of the vision tower
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


class Matrix(NamedTuple):
    """One matrix of an adapter, as its key describes it."""

    trained: str
    """The module's name in the trained model, which the adapter's patterns match."""
    module: str
    """The module's name in the original layout."""
    third: int | None
    """0, 1 or 2 for the query, key or value part of a module that stacks them; None for a whole module."""
    side: str
    """"A" or "B"."""


def parse_key(key: str) -> Matrix | None:
    """Parse the key of an adapter's tensor; None for a key that is not lora_A or lora_B of a linear layer."""
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    trained = match["module"]
    name = trained
    for pattern, prefix in _PARTS:
        name = pattern.sub(prefix, name)
    destination = remap(f"{name}.weight")
    if destination is None:
        return None
    return Matrix(trained, destination.name.removesuffix(".weight"), destination.third, match["side"])
