"""Quantising a model layer by layer over samples, so that one layer at a time is in memory unquantised.

Each layer's inputs are what the unquantised layers before it make of the samples. Once a layer has run over all
samples, the guard chooses a format for each of its stages, and the unquantised layer is given back.

Shapes: T tokens, N tiles, L patches and class token, C hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from ternvl.checkpoint.stored import StoredWeights
from ternvl.errors import ConfigError
from ternvl.fused.decoder import FusedDecoder, FusedDecoderLayer
from ternvl.fused.packed import BlockEmbedding, WideEmbedding
from ternvl.fused.replace import is_quantized, rest_to_float32
from ternvl.fused.stages import layer_of
from ternvl.fused.vision import FusedPatches, FusedProjector, FusedVisionLayer
from ternvl.kernels.memory import give_back
from ternvl.kernels.stage import Stage
from ternvl.kernels.stage_formats import pack
from ternvl.kernels.stage_types import FourBits
from ternvl.model.internvl import InternVL
from ternvl.model.vision import pixel_shuffle
from ternvl.quant.agreement import attention_of, kl_divergence
from ternvl.quant.cache_errors import MeasuredAttention
from ternvl.quant.guard import (
    SCHEMES,
    Record,
    StageReport,
    attention_error,
    choose,
    choose_attention,
    choose_cache,
    choose_model,
    formats_for,
    record_for,
)
from ternvl.types import Progress, Prompt

_DECODER = "language_model.model"
_ROWS = 64
"""The rows of logits that are in memory at a time."""
_COMPARED = 8
"""The positions of each sample at which the logits of the whole model are compared."""
_T = TypeVar("_T", bound=nn.Module)


@torch.inference_mode()
def quantize(
    model: InternVL,
    scheme: str,
    samples: Sequence[Prompt],
    progress: Progress | None = None,
    stored: StoredWeights | None = None,
) -> list[StageReport]:
    """Quantise a plain model on the CPU in place, and return what was chosen for each stage.

    `samples` should contain images and texts. `progress` is called with the stages done so far and the stages in all.
    `stored` are the weights of a checkpoint that is quantised already: its embedding is kept as it is, and in the
    scheme "checkpoint" the decoder's weights of 4 bits.
    Raises ConfigError for an unknown scheme, or if a logit on the samples is NaN or infinite; the model is of no use
    then.
    """
    if scheme not in SCHEMES:
        raise ConfigError(f"quantization is {scheme!r}; it is one of {', '.join(SCHEMES)}.")
    conversion = _Conversion(model, scheme, progress, stored if scheme == "checkpoint" else None)
    features = conversion.vision([sample.pixel_values for sample in samples])
    hidden = conversion.decoder(samples, features)
    wanted = conversion.head(hidden)
    rest_to_float32(model)
    if stored is not None and (blocks := stored.embedding()) is not None:
        model.language_model.model.embed_tokens = BlockEmbedding(*blocks)  # type: ignore[assignment]
    reports = conversion.reports + conversion.attention_reports
    return [*reports, choose_model(scheme, is_quantized(model), _divergence(model, samples, wanted))]


class _Conversion:
    """A model of which some layers are quantised, and the reports about these."""

    def __init__(self, model: InternVL, scheme: str, progress: Progress | None, stored: StoredWeights | None) -> None:
        self.model, self.config, self.scheme, self._stored = model, model.config, scheme, stored
        self.reports: list[StageReport] = []
        self.attention_reports: list[StageReport] = []
        layers = self.config.vision.num_layers + self.config.language.num_layers
        self._count = 4 * layers + 4  # and the patches, the projector's two and the head
        self._progress = progress

    def vision(self, pixels: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Convert the tower and the projector; return the features of each sample that has tiles."""
        tower = self.model.vision_model
        patches = FusedPatches.from_conv(self.config.vision, tower.embeddings.patch_embedding)
        tower.embeddings.patch_embedding = patches  # type: ignore[assignment]
        rest_to_float32(tower.embeddings)
        xs = [tower.embeddings(tiles.float()) for tiles in pixels if tiles is not None]  # each [N, L, C]
        self._choose("vision_model.embeddings.patch_embedding", patches, {})
        for i, plain in enumerate(tower.encoder.layers):
            path = f"vision_model.encoder.layers.{i}"
            layer = FusedVisionLayer.from_layer(self.config.vision, plain)  # type: ignore[arg-type]
            error = attention_error(layer, [x[:1] for x in xs])
            xs = self._run(path, layer, xs, layer)
            self.attention_reports.append(choose_attention(path, layer, error))
            tower.encoder.layers[i] = layer
            give_back(plain.parameters())
        plain, ratio = self.model.mlp1, self.config.downsample_ratio
        projector = FusedProjector.from_sequential(plain)
        features = iter(self._run("mlp1", projector, xs, lambda x: projector(pixel_shuffle(x[:, 1:], ratio))))
        self.model.mlp1 = projector  # type: ignore[assignment]
        give_back(plain.parameters())
        return [None if tiles is None else next(features) for tiles in pixels]

    def decoder(self, samples: Sequence[Prompt], features: Sequence[Tensor | None]) -> list[Tensor]:
        """Convert the decoder's layers; return the final hidden states of each sample."""
        decoder, config = self.model.language_model.model, self.config.language
        embed, attention = WideEmbedding(decoder.embed_tokens), MeasuredAttention(config)
        xs = [_embedded(embed, *each) for each in zip(samples, features, strict=True)]  # each [T, C]
        angles = [decoder.rotary(torch.arange(len(x))) for x in xs]
        layers = []
        for i, plain in enumerate(decoder.layers):
            layer = FusedDecoderLayer.from_layer(config, i, plain)  # type: ignore[arg-type]
            rotary = iter(angles)
            xs = self._run(
                f"language_model.model.layers.{i}",
                layer,
                xs,
                lambda x, layer=layer, rotary=rotary: layer(x, next(rotary), attention),  # type: ignore[misc]
            )
            layers.append(layer)
            decoder.layers[i] = nn.Identity()
            give_back(plain.parameters())
        fused = FusedDecoder(decoder, layers)
        rest_to_float32(fused.norm)
        self.model.language_model.model = fused  # type: ignore[assignment]
        self.attention_reports += choose_cache(fused, attention.errors())
        return [fused.norm(x) for x in xs]

    def head(self, hidden: Sequence[Tensor]) -> list[Tensor]:
        """Convert the output head, and return some unquantised logits of each sample: [few, V].

        Raises ConfigError if a logit is NaN or infinite.
        """
        language = self.model.language_model
        plain = language.lm_head
        layer = layer_of([plain])
        head = pack(layer)
        seen = record_for("language_model.lm_head", self.scheme)
        wanted = [head(x[_some(len(x))]) for x in hidden]
        if not all(values.isfinite().all() for values in (*hidden, *wanted)):
            raise ConfigError("The model cannot be quantised, because a logit on the samples is NaN or infinite.")
        for x in hidden:
            seen.add(head.inputs(x))
        path, formats = "language_model.lm_head", formats_for("language_model.lm_head", self.scheme)
        unused = () if language.is_tied else plain.parameters()
        names = [f"{_DECODER}.embed_tokens.weight" if language.is_tied else f"{path}.weight"]
        kept = None if self._stored is None else self._stored.get(names)
        language.lm_head = self._report(*choose(path, head, seen, formats, layer, kept))  # type: ignore[assignment]
        give_back(unused)
        return wanted

    def _run(self, path: str, module: nn.Module, xs: Iterable[Tensor], run: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Run a module over inputs, then choose formats for its stages; return the unquantised outputs."""
        records: dict[str, Record] = {}

        def add(name: str, stage: Stage, x: Tensor) -> None:
            if name not in records:
                records[name] = record_for(f"{path}.{name}", self.scheme)
            records[name].add(stage.inputs(x))

        with _hooks(_stages(module), add):
            outputs = [run(x) for x in xs]
        self._choose(path, module, records)
        return outputs

    def _choose(self, path: str, module: nn.Module, records: dict[str, Record]) -> None:
        """Choose formats for the stages right below a module."""
        for name, stage in list(_stages(module)):
            formats = formats_for(f"{path}.{name}", self.scheme)
            kept = self._kept(path, module, name)
            chosen = choose(f"{path}.{name}", stage, records.get(name), formats, kept=kept)
            setattr(module, name, self._report(*chosen))

    def _kept(self, path: str, module: nn.Module, name: str) -> FourBits | None:
        """The checkpoint's own weights of 4 bits for a stage of the decoder."""
        if self._stored is None or not isinstance(module, FusedDecoderLayer):
            return None
        return self._stored.get([f"{path}.{part.name}.weight" for part in module.parts()[name]])

    def _report(self, chosen: Stage, report: StageReport) -> Stage:
        self.reports.append(report)
        if self._progress is not None:
            self._progress(len(self.reports), self._count)
        return chosen


def _some(length: int) -> slice:
    """Positions of the last half of a sample, which ends with its text."""
    half = (length + 1) // 2
    return slice(length - half, None, max(1, -(-half // _COMPARED)))


def _divergence(model: InternVL, samples: Sequence[Prompt], wanted: Sequence[Tensor]) -> float:
    """Return the mean Kullback-Leibler divergence, in nats, from unquantised logits at some positions."""
    found: list[Tensor] = []
    for sample, logits in zip(samples, wanted, strict=True):
        hidden = model.hidden(sample, attention_of(model, sample.num_tokens))
        found.append(kl_divergence(logits, model.logits(hidden[_some(len(hidden))])))
    return float(torch.cat(found).mean())


def _embedded(embed: WideEmbedding, sample: Prompt, features: Tensor | None) -> Tensor:
    """The decoder's input for a sample: [T, C]."""
    x: Tensor = embed(torch.tensor(sample.token_ids))
    if features is not None:
        for image in sample.images:
            tiles = features[image.first_tile : image.first_tile + image.num_tiles]
            x[image.start : image.stop] = tiles.flatten(0, 1)
    return x


def _stages(module: nn.Module) -> Iterator[tuple[str, Stage]]:
    return ((name, child) for name, child in module.named_children() if isinstance(child, Stage))


@contextmanager
def _hooks(modules: Iterable[tuple[str, _T]], call: Callable[[str, _T, Tensor], None]) -> Iterator[None]:
    """Call `call` with a module's name, the module and its input each time before it runs."""
    handles = []
    for name, module in modules:

        def hook(module: _T, arguments: tuple[Tensor, ...], name: str = name) -> None:
            call(name, module, arguments[0])

        handles.append(module.register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
