"""Quantisation with a guard: each layer's error is measured, and layers above the bound are left unquantised.

The unquantised model runs over sample prompts (`conversion.py`), and each stage's inputs are recorded. Each stage is
then tried in the requested format: with its inputs as they are, mixed, which spreads what is large over others
(arXiv 2404.00456), and smoothed, which moves scale from inputs to weights (arXiv 2211.10438); and with weights that
compensate for each other's errors (`kernels/rounding.py`). The best try is used if its error is within the bound.
Otherwise the next finer format is tried, and if none is within its bound, the stage stays unquantised. The report
names each choice with its error.

Shapes: R rows, N outputs, K inputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ternvl.fused.decoder import FusedDecoder
from ternvl.fused.vision import FusedVisionLayer, exact_attention
from ternvl.kernels.attention_int8 import tile_attention
from ternvl.kernels.stage import Stage
from ternvl.kernels.stage_types import Format, FourBits, Layer
from ternvl.quant.tries import BOUNDS, INPUTS_A_ROW, Inputs, kept_try, layer_of, tries

SCHEMES = ("int8", "int4", "checkpoint")
"""In "checkpoint", layers whose weights have 4 bits in the checkpoint keep them as they are; the others are as in
"int8"."""
_LANGUAGE = "language_model."
MODEL = "model"
"""The name of the report on the model as a whole."""
SOUND = {"int8": 0.02, "int4": 0.1, "checkpoint": 0.02}
"""The mean divergence from the unquantised model on the samples, in nats, up to which a scheme is called sound."""
_ROWS_A_CALL, _ROWS = 64, 256
"""About as many rows of one call, and of all, are kept to measure errors on."""
_HELD_OUT = 5
"""At most one row in this many is kept for that; weights are fitted to the others."""
_MOST_INPUTS = {Format.INT8: 2048, Format.INT4: 8192}
"""The most inputs of a decoder's stage whose weights are fitted: the work grows with their third power."""
_MOST_OF_VISION = 512
"""The same of the vision tower and the projector: in a large tower fitting takes a quarter of the conversion."""


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
    """The relative error of each try, such as "int8", "int8, smoothed by 0.5" and "int4, mixed, compensated"."""


class Record:
    """What is known of a stage's inputs after its norm: some rows, and statistics of the others.

    Errors are measured on the rows. Of the others it keeps the mean products of two inputs, to which weights are
    fitted, unless a stage has more than `most_inputs` inputs.
    """

    def __init__(self, most_inputs: int) -> None:
        self._most_inputs = most_inputs
        self._rows: list[Tensor] = []
        self._largest: Tensor | None = None
        self._sums: Tensor | None = None
        self._count = 0

    def add(self, rows: Tensor) -> None:
        """Add the rows [R, K] of one call."""
        largest = rows.abs().amax(dim=0)
        self._largest = largest if self._largest is None else torch.maximum(self._largest, largest)
        is_kept = torch.zeros(len(rows), dtype=torch.bool)
        if sum(map(len, self._rows)) < _ROWS:
            is_kept[:: max(_HELD_OUT, len(rows) // _ROWS_A_CALL)] = True
            self._rows.append(_of_one_size(rows[is_kept]))
        others, k = rows[~is_kept], rows.shape[1]
        if len(others) and k <= self._most_inputs:
            self._sums = torch.zeros(k, k) if self._sums is None else self._sums
            others = _of_one_size(others)
            self._sums.addmm_(others.T, others)
            self._count += len(others)

    def inputs(self) -> Inputs | None:
        """Return what is known; None without rows."""
        if self._largest is None:
            return None
        is_enough = self._sums is not None and self._count * INPUTS_A_ROW >= len(self._largest)
        moments = self._sums / self._count if is_enough and self._sums is not None else None
        return Inputs(torch.cat(self._rows), self._largest, moments)


def _of_one_size(rows: Tensor) -> Tensor:
    """Rows [R, K] with a root mean square of 1: what a stage makes of a large row is added to large values."""
    return rows / rows.square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-12)


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
    is_language = name.startswith(_LANGUAGE)
    return (Format.INT4, Format.INT8) if scheme == "int4" and is_language else (Format.INT8,)


def record_for(name: str, scheme: str) -> Record:
    """Return a new record of a stage's inputs."""
    most = _MOST_INPUTS[formats_for(name, scheme)[0]] if name.startswith(_LANGUAGE) else _MOST_OF_VISION
    return Record(most)


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
    inputs = None if seen is None else seen.inputs()
    if inputs is not None:
        if kept is not None:
            label, best, error = kept_try(stage, layer or layer_of(stage), inputs.rows, kept)
            tried[label] = error
            if error <= BOUNDS[Format.AFFINE4]:
                return best, StageReport(name, label, error, False, tried)
        for format in formats:
            best, least = stage, math.inf
            for label, each, error in tries(stage, layer or layer_of(stage), inputs, format):
                tried[label] = error
                if error < least:
                    best, least = each, error
                del each  # before the next one is made: that of an output head has 136 MB
            if least <= BOUNDS[format]:
                return best, StageReport(name, format.name.lower(), least, best.smoothing is not None, tried)
    return stage, StageReport(name, stage.format.name.lower(), 0.0, False, tried)


def choose_model(scheme: str, is_quantized: bool, divergence: float) -> StageReport:
    """Return the report on the whole model, whose `error` is its mean divergence on the samples in nats."""
    return StageReport(MODEL, scheme if is_quantized else "float32", divergence, False, {"divergence": divergence})


def unsound(reports: Iterable[StageReport]) -> str:
    """Return why a scheme is not sound for a model, as a sentence; an empty text if it is."""
    for report in reports:
        if report.name == MODEL and not report.error <= SOUND.get(report.format, math.inf):
            return (
                f"{report.format} is not sound for this model: on the samples its distributions of the next token "
                f"diverge by {report.error:.2e} nats on average, which is above {SOUND[report.format]}."
            )
    return ""


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
