"""Quantisation with a guard: each layer's error is measured, and layers above the bound are left unquantised.

The unquantised model runs over sample prompts (`conversion.py`), and some rows of each stage's inputs are recorded.
Each stage is then tried in the requested format without and with smoothing, which moves scale from inputs to weights if
some channels are far larger than the others (arXiv 2211.10438). In 4 bits it is also tried with weights that compensate
for each other's errors (`int4_rounding.py`). The best try is used if its error is within the bound. Otherwise the next
finer format is tried, and if none is within its bound, the stage stays unquantised. The report names each choice with
its error.

Shapes: R rows, N outputs, K inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ternvl.fused.decoder import FusedDecoder
from ternvl.fused.vision import FusedVisionLayer, exact_attention
from ternvl.kernels.attention_int8 import tile_attention
from ternvl.kernels.stage import Stage
from ternvl.kernels.stage_types import Format, FourBits, Layer
from ternvl.quant.tries import BOUNDS, int4_tries, int8_tries, kept_try, layer_of

SCHEMES = ("int8", "int4", "checkpoint")
"""In "checkpoint", layers whose weights have 4 bits in the checkpoint keep them as they are; the others are as in
"int8"."""
_FEW, _MANY = (64, 256), (256, 1024)
"""The rows of inputs that are recorded from one call and in all. A stage that is tried in 4 bits needs many, because
the compensation of its weights is fitted to them."""


@dataclass(frozen=True, slots=True)
class StageReport:
    """The format that was chosen for a stage or for the attention of a layer."""

    name: str
    """The stage's name, or a layer's name followed by ".attention"."""
    format: str
    """"int8", "int4" or "affine4", or "float32" or "bfloat16" if it was left unquantised."""
    error: float
    """The relative error of the choice; 0 if it was left unquantised."""
    smoothed: bool
    """Whether inputs are smoothed."""
    tried: dict[str, float] = field(default_factory=dict)
    """The relative error of each try, such as "int8", "int8, smoothed by 0.5" and "int4, compensated"."""


class Record:
    """Some rows of a stage's inputs after its norm, and the largest value of each channel over all rows."""

    def __init__(self, most: tuple[int, int]) -> None:
        self.rows: list[Tensor] = []
        self.largest: Tensor | None = None
        self._most_a_call, self._most = most

    def add(self, rows: Tensor) -> None:
        """Add the rows [R, K] of one call."""
        largest = rows.abs().amax(dim=0)
        self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)
        if sum(map(len, self.rows)) < self._most:
            self.rows.append(rows[:: max(1, len(rows) // self._most_a_call)][: self._most_a_call].clone())


def vision_layers(model: nn.Module) -> Iterator[tuple[str, FusedVisionLayer]]:
    """Iterate over the vision layers of a fused model with their names."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, FusedVisionLayer))


def stages(model: nn.Module) -> Iterator[tuple[str, Stage]]:
    """Iterate over the stages of a fused model with their names."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, Stage))


def formats_for(name: str, scheme: str) -> tuple[Format, ...]:
    """Return the formats to try for a stage, in order.

    The patch embedding is never quantised, and the vision tower never has 4 bits.
    """
    if "patch_embedding" in name:
        return ()
    is_language = name.startswith("language_model.")
    return (Format.INT4, Format.INT8) if scheme == "int4" and is_language else (Format.INT8,)


def record_for(name: str, scheme: str) -> Record:
    """Return a new record of a stage's inputs, as large as its formats need it."""
    return Record(_MANY if Format.INT4 in formats_for(name, scheme) else _FEW)


def attention_error(layer: FusedVisionLayer, tiles: Iterable[Tensor]) -> float | None:
    """Return the relative error of 8-bit attention in a vision layer; None without tiles, or if it cannot have 8 bits.

    `tiles` are inputs of the layer, [1, L, C] each.
    """
    sums = torch.zeros(2, dtype=torch.float64)
    for x in tiles if layer.can_attend_in_int8 else ():
        qkv = layer.heads(x)
        wanted = exact_attention(qkv).double()
        sums += torch.stack([(tile_attention(qkv) - wanted).square().sum(), wanted.square().sum()])
    error, size = sums
    return float((error / size).sqrt()) if size > 0 else None


def choose_attention(name: str, layer: FusedVisionLayer, error: float | None) -> StageReport:
    """Choose 8-bit attention for a vision layer if its `qkv` stage has 8 bits and the error is within the bound."""
    label = Format.INT8.name.lower()
    layer.attends_in_int8 = layer.qkv.format is Format.INT8 and error is not None and error <= BOUNDS[Format.INT8]
    tried = {} if error is None else {label: error}
    if layer.attends_in_int8:
        return StageReport(f"{name}.attention", label, tried[label], False, tried)
    return StageReport(f"{name}.attention", "float32", 0.0, False, tried)


def choose(
    name: str,
    stage: Stage,
    seen: Record | None,
    formats: Sequence[Format],
    layer: Layer | None = None,
    kept: FourBits | None = None,
) -> tuple[Stage, StageReport]:
    """Return the stage in the first format that is within its bound, and the report.

    A stage whose inputs were not recorded stays unquantised. `layer` is what it was packed from; without it, its
    weights are unpacked. `kept` are the weights of 4 bits that the checkpoint has for it, which are tried first.
    """
    tried: dict[str, float] = {}
    if seen is not None and seen.largest is not None:
        rows = torch.cat(seen.rows)
        if kept is not None:
            label, best, error = kept_try(stage, layer or layer_of(stage), rows, kept)
            tried[label] = error
            if error <= BOUNDS[Format.AFFINE4]:
                return best, StageReport(name, label, error, False, tried)
        for format in formats:
            tries = int4_tries if format is Format.INT4 else int8_tries
            made = []
            for label, each, error in tries(stage, layer or layer_of(stage), rows, seen.largest):
                tried[label] = error
                made.append((each, error))
            best, error = min(made, key=lambda pair: pair[1])
            if error <= BOUNDS[format]:
                return best, StageReport(name, format.name.lower(), error, best.smoothing is not None, tried)
    return stage, StageReport(name, stage.format.name.lower(), 0.0, False, tried)


def choose_cache(decoder: nn.Module, errors: dict[int, float]) -> list[StageReport]:
    """Choose 8-bit keys and values if the error of every layer's attention is within the bound.

    The cache has one type for all layers. Each report says what the layer's own error would allow.
    """
    assert isinstance(decoder, FusedDecoder)
    bound = BOUNDS[Format.INT8]
    decoder.caches_in_int8 = len(errors) == len(decoder.layers) and max(errors.values()) <= bound
    return [
        StageReport(
            f"language_model.model.layers.{layer}.attention",
            "int8" if error <= bound else "float32",
            error if error <= bound else 0.0,
            False,
            {"int8": error},
        )
        for layer, error in sorted(errors.items())
    ]
