"""Quantisation with a guard: stages become whole numbers of 8 or 4 bits where their measured error allows it.

Sample prompts run through the unquantised model, and every stage keeps some rows of its inputs. Then each stage is
tried in the wanted format, as it is and with smoothing, which moves scale from inputs to weights where some channels
are far larger than the others (arXiv 2211.10438); in 4 bits also with weights that take back each other's errors
(`int4_rounding.py`). The best try is taken if its error is within the bound; else the next
finer format is tried, and a stage that nothing fits stays as it is. The report names each choice with its error.

Shapes: R rows, N outputs, K inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from ternvl.errors import ConfigError
from ternvl.fused.decoder import FusedDecoder
from ternvl.fused.replace import fuse
from ternvl.fused.vision import FusedVisionLayer, exact_attention
from ternvl.kernels.attention_int8 import tile_attention
from ternvl.kernels.stage import Stage, from_panels, unpack
from ternvl.kernels.stage_formats import pack_int4, pack_int8
from ternvl.kernels.stage_types import After, Format, Layer, Norm
from ternvl.model.attention import Attention
from ternvl.model.internvl import InternVL
from ternvl.quant.cache_errors import MeasuredAttention
from ternvl.types import Prompt

SCHEMES = ("int8", "int4")
BOUNDS = {Format.INT8: 0.03, Format.INT4: 0.15}
"""Largest root-mean-square error of a stage's products, relative to their own size."""
_FEW, _MANY = (64, 256), (256, 1024)
"""Rows of inputs that are kept of a sample, and of all: of a stage that may have 4 bits more, since weights compensate
each other's errors on them."""
_HELD_OUT = 5
"""Of a stage in 4 bits, one row in so many is not compensated for, and its error is measured on these."""
_INPUTS_A_ROW = 4
"""With more inputs than so many for each row, compensation would fit the rows alone, slowly: it is not tried."""
_SMOOTHINGS = (0.5, 0.75)

M = TypeVar("M", bound=nn.Module)
Progress = Callable[[int, int], None]
"""Called with the stages done so far and the stages in all."""


@dataclass(frozen=True, slots=True)
class StageReport:
    """What was chosen for a stage, or for the attention of a vision layer."""

    name: str
    """Of attention the layer's and ".attention"."""
    format: str
    """"int8", "int4", or "float32" or "bfloat16" where it was left as it is."""
    error: float
    """Of the choice, relative; 0 where nothing was changed."""
    smoothed: bool
    tried: dict[str, float] = field(default_factory=dict)
    """Error of each try, such as "int8", "int8, smoothed by 0.5" and "int4, compensated"."""


class _Record:
    """Rows of a stage's inputs after its norm, and the size of each channel over all rows."""

    def __init__(self, most: tuple[int, int]) -> None:
        self.rows: list[Tensor] = []
        self.largest: Tensor | None = None
        self._most_a_call, self._most = most

    def add(self, rows: Tensor) -> None:
        largest = rows.abs().amax(dim=0)
        self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)
        if sum(map(len, self.rows)) < self._most:
            self.rows.append(rows[:: max(1, len(rows) // self._most_a_call)][: self._most_a_call].clone())


@torch.inference_mode()
def quantize(
    model: InternVL, scheme: str, samples: Sequence[Prompt], progress: Progress | None = None
) -> list[StageReport]:
    """Quantise a plain model on the CPU in place; `samples` should hold images and texts.

    Raises ConfigError for an unknown scheme or samples that are not finite numbers all the way.
    """
    if scheme not in SCHEMES:
        raise ConfigError(f"quantization is {scheme!r}; it is one of {', '.join(SCHEMES)}.")
    fuse(model)
    attention = MeasuredAttention(model.config.language)
    records = record(model, samples, scheme, attention)
    errors = attention_errors(model, samples)
    reports: list[StageReport] = []
    found = list(stages(model))
    for name, stage in found:
        chosen, report = choose(name, stage, records.get(name), formats_for(name, scheme))
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, chosen)
        reports.append(report)
        if progress is not None:
            progress(len(reports), len(found))
    reports += [choose_attention(name, layer, errors.get(name)) for name, layer in vision_layers(model)]
    return reports + choose_cache(model.language_model.model, attention.errors())


def vision_layers(model: nn.Module) -> Iterator[tuple[str, FusedVisionLayer]]:
    """The vision layers of a fused model by name."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, FusedVisionLayer))


def stages(model: nn.Module) -> Iterator[tuple[str, Stage]]:
    """The stages of a fused model by name."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, Stage))


def formats_for(name: str, scheme: str) -> tuple[Format, ...]:
    """What is tried for a stage, in order. Pixels and the vision tower never have 4 bits."""
    if "patch_embedding" in name:
        return ()
    is_language = name.startswith("language_model.")
    return (Format.INT4, Format.INT8) if scheme == "int4" and is_language else (Format.INT8,)


def record(
    model: InternVL, samples: Sequence[Prompt], scheme: str, attention: Attention | None = None
) -> dict[str, _Record]:
    """What each stage is given while the model runs over the samples."""
    records: dict[str, _Record] = {}

    def keep(name: str, stage: Stage, x: Tensor) -> None:
        if name not in records:
            records[name] = _Record(_MANY if Format.INT4 in formats_for(name, scheme) else _FEW)
        records[name].add(stage.inputs(x))

    with _hooks(stages(model), keep):
        for sample in samples:
            if not model.logits(model.hidden(sample, attention)).isfinite().all():
                raise ConfigError("The model gives logits that are no numbers on the samples: it cannot be quantised.")
    return records


def attention_errors(model: InternVL, samples: Sequence[Prompt]) -> dict[str, float]:
    """By vision layer, the relative error of attention in 8 bits over the first tile of each sample."""
    sums = {name: torch.zeros(2, dtype=torch.float64) for name, _ in vision_layers(model)}

    def measure(name: str, layer: FusedVisionLayer, x: Tensor) -> None:
        qkv = layer.heads(x[:1])
        wanted = exact_attention(qkv).double()
        sums[name] += torch.stack([(tile_attention(qkv) - wanted).square().sum(), wanted.square().sum()])

    layers = [(name, layer) for name, layer in vision_layers(model) if layer.can_attend_in_int8]
    with _hooks(layers, measure):
        for sample in samples:
            if sample.pixel_values is not None:
                model.encode_tiles(sample.pixel_values[:1])
    return {name: float((error / size).sqrt()) for name, (error, size) in sums.items() if size > 0}


@contextmanager
def _hooks(modules: Iterable[tuple[str, M]], call: Callable[[str, M, Tensor], None]) -> Iterator[None]:
    """Calls `call` with each module's name and its input, before the module runs."""
    handles = []
    for name, module in modules:

        def hook(module: M, arguments: tuple[Tensor, ...], name: str = name) -> None:
            call(name, module, arguments[0])

        handles.append(module.register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def choose_attention(name: str, layer: FusedVisionLayer, error: float | None) -> StageReport:
    """The layer attends in 8 bits where what it attends over comes of 8 bits already and the error is within the
    bound."""
    label = Format.INT8.name.lower()
    layer.attends_in_int8 = layer.qkv.format is Format.INT8 and error is not None and error <= BOUNDS[Format.INT8]
    tried = {} if error is None else {label: error}
    if layer.attends_in_int8:
        return StageReport(f"{name}.attention", label, tried[label], False, tried)
    return StageReport(f"{name}.attention", "float32", 0.0, False, tried)


def choose(name: str, stage: Stage, seen: _Record | None, formats: Sequence[Format]) -> tuple[Stage, StageReport]:
    """The stage in the first format that fits, and the report. A stage that no sample reached stays as it is."""
    tried: dict[str, float] = {}
    if seen is not None and seen.largest is not None:
        rows = torch.cat(seen.rows)
        for format in formats:
            tries = _int4_tries if format is Format.INT4 else _int8_tries
            made = []
            for label, each, error in tries(stage, rows, seen.largest):
                tried[label] = error
                made.append((each, error))
            best, error = min(made, key=lambda pair: pair[1])
            if error <= BOUNDS[format]:
                return best, StageReport(name, format.name.lower(), error, best.smoothing is not None, tried)
    return stage, StageReport(name, stage.format.name.lower(), 0.0, False, tried)


def choose_cache(decoder: nn.Module, errors: dict[int, float]) -> list[StageReport]:
    """Keys and values have 8 bits where the error of each layer's attention is within the bound: a cache is of one
    kind. The reports are of what each layer would have alone."""
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


Try = tuple[str, Stage, float]
"""What it is called, the stage and its error."""


def _int8_tries(plain: Stage, rows: Tensor, largest: Tensor) -> Iterator[Try]:
    layer, wanted = _layer(plain), plain.product(rows)
    stage = pack_int8(layer)
    error = relative_error(stage.product(rows), wanted)
    yield "int8", stage, error
    if error <= BOUNDS[Format.INT8] / 2:
        return  # good as it is, and without work at each call
    for strength in _SMOOTHINGS:
        stage = pack_int8(layer, smoothing_of(layer.weight, largest, strength))
        yield f"int8, smoothed by {strength}", stage, relative_error(stage.product(rows), wanted)


def _int4_tries(plain: Stage, rows: Tensor, largest: Tensor) -> Iterator[Try]:
    layer = _layer(plain)
    is_held_out = torch.arange(len(rows)) % _HELD_OUT == 0
    held_out, seen = rows[is_held_out], rows[~is_held_out] if len(rows) > 1 else rows
    wanted = plain.product(held_out)

    def made(label: str, smoothing: Tensor | None, compensate: bool) -> Try:
        inputs = seen if smoothing is None else seen * smoothing
        importance = inputs.square().mean(dim=0)
        stage = pack_int4(layer, smoothing, importance, compensate=seen if compensate else None)
        return label, stage, relative_error(stage.product(held_out), wanted)

    can_compensate = len(seen) * _INPUTS_A_ROW >= rows.shape[1]
    tries = [made("int4", None, False)] + ([made("int4, compensated", None, True)] if can_compensate else [])
    yield from tries
    if min(error for _, _, error in tries) <= BOUNDS[Format.INT4]:
        return  # smoothing is work at each call
    for strength in _SMOOTHINGS:
        label = f"int4, smoothed by {strength}{', compensated' if can_compensate else ''}"
        yield made(label, smoothing_of(layer.weight, largest, strength), can_compensate)


def smoothing_of(weight: Tensor, largest: Tensor, strength: float) -> Tensor:
    """What inputs are multiplied by, [K]: large channels become smaller, the weights for them larger."""
    of_inputs = largest.clamp_min(1e-5)
    of_weights = weight.float().abs().amax(dim=0).clamp_min(1e-5)
    factor = of_weights.pow(1 - strength) / of_inputs.pow(strength)
    return factor / factor.log().mean().exp()


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """Root-mean-square error relative to the size of what is wanted; infinite where something is no number."""
    size = wanted.double().square().sum().sqrt()
    error = (got.double() - wanted.double()).square().sum().sqrt() / size.clamp_min(1e-12)
    return float(error) if bool(error.isfinite()) else float("inf")


def _layer(stage: Stage) -> Layer:
    """What an unquantised stage is made from."""
    weight, _ = unpack(stage)
    norm = None if stage.norm_weight is None else Norm(stage.norm_weight, stage.norm_bias, stage.eps)
    bias = None if stage.bias is None else from_panels(stage, stage.bias)
    return Layer(weight, bias, norm, After(stage.after))
