"""Replacing the layers of an `InternVL` by stages, which are fewer and larger steps with the same values.

The replacements are in `decoder.py` and `vision.py`. One stage holds several of the checkpoint's matrices if they have
the same input: q, k and v, and the gate and up projections.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from ternvl.config import ModelConfig
from ternvl.fused.decoder import FusedDecoder, FusedDecoderLayer
from ternvl.fused.packed import BlockEmbedding, WideEmbedding
from ternvl.fused.stages import stage_of
from ternvl.fused.vision import FusedPatches, FusedProjector, FusedVisionLayer
from ternvl.kernels.stage import Stage
from ternvl.kernels.stage_types import Format
from ternvl.model.internvl import InternVL


def fuse_language(model: InternVL) -> None:
    """Replace the decoder's layers, the output head and the embedding, in place."""
    language, config = model.language_model, model.config.language
    layers = language.model.layers
    for i, layer in enumerate(layers):  # one by one, so that each is freed once it is packed
        layers[i] = FusedDecoderLayer.from_layer(config, i, layer)  # type: ignore[arg-type]
    language.model = FusedDecoder(language.model, list(layers))  # type: ignore[arg-type]
    head: nn.Linear = language.lm_head
    language.lm_head = stage_of([head])  # type: ignore[assignment]


def assemble(
    config: ModelConfig,
    stages: dict[str, Stage],
    rest: dict[str, Tensor],
    *,
    int8_attention: Collection[str],
    int8_cache: bool,
    embedding_format: int | None = None,
) -> InternVL:
    """Build a fused model from its stages by name and its other tensors by name.

    `int8_attention` names the vision layers that attend in 8 bits. `int8_cache` says whether 8 bits are sufficient for
    keys and values. `embedding_format` is the format of GGUF that the embedding has, if it has one.
    """
    with torch.device("meta"):
        model = InternVL(config)
    vision, language = model.vision_model, model.language_model

    def stages_of(kind: type, path: str) -> dict[str, Stage]:
        return {name: stages[f"{path}.{name}"] for name in kind.STAGES}  # type: ignore[attr-defined]

    patches = "vision_model.embeddings.patch_embedding"
    vision.embeddings.patch_embedding = FusedPatches(config.vision, **stages_of(FusedPatches, patches))  # type: ignore[assignment]
    for i in range(config.vision.num_layers):
        path = f"vision_model.encoder.layers.{i}"
        vision.encoder.layers[i] = FusedVisionLayer(
            config.vision, None, attends_in_int8=path in int8_attention, **stages_of(FusedVisionLayer, path)
        )
    model.mlp1 = FusedProjector(**stages_of(FusedProjector, "mlp1"))  # type: ignore[assignment]
    layers = [
        FusedDecoderLayer(config.language, i, **stages_of(FusedDecoderLayer, f"language_model.model.layers.{i}"))
        for i in range(config.language.num_layers)
    ]
    language.model = FusedDecoder(language.model, layers, caches_in_int8=int8_cache)
    language.lm_head = stages["language_model.lm_head"]  # type: ignore[assignment]
    if embedding_format is not None:
        blocks = rest["language_model.model.embed_tokens.blocks"]
        language.model.embed_tokens = BlockEmbedding(blocks, embedding_format)  # type: ignore[assignment]
    own = model.state_dict().keys() - {
        f"{path}.{name}" for path, stage in stages.items() for name in stage.state_dict()
    }
    assert own == rest.keys(), own ^ rest.keys()
    model.load_state_dict(rest, assign=True, strict=False)
    return model.requires_grad_(False).eval()


def caches_in_int8(model: InternVL) -> bool:
    """Return whether the guard found 8 bits sufficient for a model's keys and values."""
    decoder = model.language_model.model
    return isinstance(decoder, FusedDecoder) and decoder.caches_in_int8


def is_quantized(model: nn.Module) -> bool:
    """Return whether a stage of a model has weights of 8 or 4 bits."""
    plain = (Format.FLOAT32, Format.BFLOAT16)
    return any(isinstance(module, Stage) and module.format not in plain for module in model.modules())


def rest_to_float32(model: nn.Module) -> None:
    """Convert a model's parameters outside stages and embeddings to float32."""
    for module in model.modules():
        if not isinstance(module, WideEmbedding):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.float()
