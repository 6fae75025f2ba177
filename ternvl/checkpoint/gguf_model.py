"""InternVL3 in GGUF files: one with the language model (architecture qwen2), one with the vision tower (mmproj).

Names are those of llama.cpp (`llama-arch.cpp`, `clip-impl.h`, `convert_hf_to_gguf.py`); its converter splits the vision
tower's qkv into three and changes no order of rows. The metadata become the same document as a `config.json`, so that
the same rules hold for them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ternvl.checkpoint import config_json
from ternvl.checkpoint.json_section import Section
from ternvl.config import ModelConfig
from ternvl.errors import CheckpointError
from ternvl.gguf.file import GGUFFile, Slice
from ternvl.gguf.reader import TextList
from ternvl.kernels.stage_types import FourBits

_LANGUAGE, _VISION = "qwen2", "clip"
_MEAN_AND_STD = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}
_LAYER, _TILE_LAYER = r"language_model.model.layers.\1.", r"vision_model.encoder.layers.\1."
_RENAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^token_embd\.weight$", "language_model.model.embed_tokens.weight"),
        (r"^output_norm\.weight$", "language_model.model.norm.weight"),
        (r"^output\.weight$", "language_model.lm_head.weight"),
        (r"^blk\.(\d+)\.attn_norm\.", _LAYER + "input_layernorm."),
        (r"^blk\.(\d+)\.ffn_norm\.", _LAYER + "post_attention_layernorm."),
        (r"^blk\.(\d+)\.attn_output\.", _LAYER + "self_attn.o_proj."),
        (r"^blk\.(\d+)\.attn_([qkv])\.", _LAYER + r"self_attn.\2_proj."),
        (r"^blk\.(\d+)\.ffn_(gate|up|down)\.", _LAYER + r"mlp.\2_proj."),
        (r"^v\.class_embd$", "vision_model.embeddings.class_embedding"),
        (r"^v\.position_embd\.weight$", "vision_model.embeddings.position_embedding"),
        (r"^v\.patch_embd\.", "vision_model.embeddings.patch_embedding."),
        (r"^v\.blk\.(\d+)\.ln([12])\.", _TILE_LAYER + r"norm\2."),
        (r"^v\.blk\.(\d+)\.ls([12])\.weight$", _TILE_LAYER + r"ls\2"),
        (r"^v\.blk\.(\d+)\.attn_out\.", _TILE_LAYER + "attn.proj."),
        (r"^v\.blk\.(\d+)\.attn_qkv\.", _TILE_LAYER + "attn.qkv."),
        (r"^v\.blk\.(\d+)\.attn_([qkv])\.", r"vision_tower.encoder.layer.\1.attention.\2_proj."),  # `remap` stacks them
        (r"^v\.blk\.(\d+)\.ffn_up\.", _TILE_LAYER + "mlp.fc1."),
        (r"^v\.blk\.(\d+)\.ffn_down\.", _TILE_LAYER + "mlp.fc2."),
        (r"^mm\.model\.mlp\.([013])\.", r"mlp1.\1."),
    )
)
_EMBEDDINGS = {
    "vision_model.embeddings.class_embedding": 3, "vision_model.embeddings.position_embedding": 3
}  # fmt: skip
"""Tensors whose leading dimensions of 1 the converter may drop, with their number of dimensions."""


class GGUFWeights:
    """The tensors of a file under names that `names.remap` knows, with the methods of an open safetensors file."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError as `GGUFFile` does, and for an architecture that is not InternVL3's."""
        self.file = GGUFFile(path)
        self.architecture = _architecture(self.file)
        swapped = self._has_swapped_layers()
        self._names = {_renamed(name, swapped): name for name in self.file.keys()}  # noqa: SIM118

    def keys(self) -> Iterable[str]:
        """Return the names of the tensors."""
        return self._names.keys()

    def get_slice(self, name: str) -> Slice:
        """Return what is known of a tensor."""
        found = self.file.get_slice(self._names[name])
        return found._replace(shape=(*[1] * (_EMBEDDINGS.get(name, 0) - len(found.shape)), *found.shape))

    def get_tensor(self, name: str) -> Tensor:
        """Return a tensor."""
        return self.file.get_tensor(self._names[name]).view(self.get_slice(name).shape)

    def get_blocks(self, name: str) -> tuple[Tensor, int] | None:
        """Return the rows of a quantised matrix and the number of their format, as `GGUFFile.get_blocks` does."""
        return self.file.get_blocks(self._names[name])

    def format_of(self, name: str) -> str:
        """Return the name of a tensor's format."""
        return self.file.format_of(self._names[name])

    def is_four_bits(self, name: str) -> bool:
        """Return whether `get_four_bits` can read a tensor."""
        return self.file.is_four_bits(self._names[name])

    def get_four_bits(self, name: str) -> FourBits:
        """Return a matrix of 4 bits as it is stored."""
        return FourBits(*self.file.get_four_bits(self._names[name]))

    def _has_swapped_layers(self) -> bool:
        """Whether the file is of an older converter, which called the first layer of a tile's MLP "down"."""
        up = self.file.shape("v.blk.0.ffn_up.weight")
        return up is not None and up[0] == self.file.metadata.get("clip.vision.embedding_length") != up[1]


def paths(folder: Path) -> list[Path]:
    """Return the GGUF files of a model, its language model first. Raises CheckpointError unless there are these two."""
    found = sorted(folder.glob("*.gguf"))
    if not found:
        others = "neither model.safetensors nor model.safetensors.index.json"
        raise CheckpointError(f"{folder} holds {others} nor GGUF files.")
    by_kind: dict[str, list[Path]] = {_LANGUAGE: [], _VISION: []}
    for path in found:
        by_kind[_architecture(GGUFFile(path))].append(path)
    for kind, noun in ((_LANGUAGE, "language model"), (_VISION, "vision tower (mmproj)")):
        if len(by_kind[kind]) != 1:
            names = ", ".join(path.name for path in by_kind[kind]) or "none"
            raise CheckpointError(f"{folder} must hold one GGUF file with a {noun}, but has {names}.")
    return [by_kind[_LANGUAGE][0], by_kind[_VISION][0]]


def read_config(folder: Path) -> ModelConfig:
    """Return the configuration that the metadata of a folder's GGUF files describe. Raises CheckpointError."""
    language, vision = (GGUFFile(path) for path in paths(folder))
    name = f"{language.path.name} and {vision.path.name}"
    document = {
        "architectures": ["InternVLChatModel"],
        "ps_version": "v2",
        "downsample_ratio": 1 / _required(vision, "clip.vision.projector.scale_factor"),
        "use_thumbnail": True,
        "min_dynamic_patch": vision.metadata.get("clip.vision.preproc_min_tiles", 1),
        "max_dynamic_patch": vision.metadata.get("clip.vision.preproc_max_tiles", 12),
        "torch_dtype": "float32",  # holds the numbers of all formats exactly
        "llm_config": _language(language),
        "vision_config": _vision(vision),
    }
    return config_json.read(Section(name, document), Section(name, {}))


def _language(file: GGUFFile) -> dict[str, Any]:
    metadata = file.metadata
    scaling = metadata.get("qwen2.rope.scaling.type", "none")
    if scaling != "none":
        raise CheckpointError(f"{file.path}: qwen2.rope.scaling.type {scaling!r} is not implemented, only 'none'.")
    embedding, tokens = file.shape("token_embd.weight"), metadata.get("tokenizer.ggml.tokens")
    if embedding and isinstance(tokens, TextList) and tokens.size > embedding[0]:
        raise CheckpointError(
            f"{file.path}: tokenizer.ggml.tokens has {tokens.size} tokens, but token_embd.weight {embedding[0]} rows."
        )
    return {
        "model_type": "qwen2",
        "hidden_act": "silu",
        "vocab_size": embedding[0] if embedding else None,
        "tie_word_embeddings": file.shape("output.weight") is None,
        "hidden_size": _required(file, "qwen2.embedding_length"),
        "num_hidden_layers": _required(file, "qwen2.block_count"),
        "num_attention_heads": _required(file, "qwen2.attention.head_count"),
        "num_key_value_heads": _required(file, "qwen2.attention.head_count_kv"),
        "intermediate_size": _required(file, "qwen2.feed_forward_length"),
        "max_position_embeddings": _required(file, "qwen2.context_length"),
        "rms_norm_eps": _short(_required(file, "qwen2.attention.layer_norm_rms_epsilon")),
        "rope_theta": _short(_required(file, "qwen2.rope.freq_base")),
        "head_dim": metadata.get("qwen2.attention.key_length"),
    }


def _vision(file: GGUFFile) -> dict[str, Any]:
    metadata = file.metadata
    for key, official in _MEAN_AND_STD.items():
        values = metadata.get(f"clip.vision.{key}")
        if not isinstance(values, list) or [_short(value) for value in values] != list(official):
            raise CheckpointError(f"{file.path}: clip.vision.{key} is {values!r}, but must be {list(official)}.")
    names = set(file.keys())
    return {
        "norm_type": "layer_norm",
        "qk_normalization": any("attn_q_norm" in name for name in names),
        "hidden_act": "gelu" if metadata.get("clip.use_gelu") is True else "another than clip.use_gelu",
        "qkv_bias": bool(names & {"v.blk.0.attn_q.bias", "v.blk.0.attn_qkv.bias"}),
        "hidden_size": _required(file, "clip.vision.embedding_length"),
        "num_hidden_layers": _required(file, "clip.vision.block_count"),
        "num_attention_heads": _required(file, "clip.vision.attention.head_count"),
        "intermediate_size": _required(file, "clip.vision.feed_forward_length"),
        "image_size": _required(file, "clip.vision.image_size"),
        "patch_size": _required(file, "clip.vision.patch_size"),
        "layer_norm_eps": _short(_required(file, "clip.vision.attention.layer_norm_epsilon")),
    }


def _architecture(file: GGUFFile) -> str:
    """Return the architecture of a file. Raises CheckpointError unless it is one of InternVL3's two."""
    found, metadata = file.metadata.get("general.architecture"), file.metadata
    if found not in (_LANGUAGE, _VISION):
        raise CheckpointError(f"{file.path} has the architecture {found!r}; of GGUF only qwen2 and clip are read.")
    projector = metadata.get("clip.projector_type", metadata.get("clip.vision.projector_type"))
    if found == _VISION and projector != "internvl":
        raise CheckpointError(f"{file.path} has the projector {projector!r}; only internvl is read.")
    if metadata.get("split.count", 1) not in (0, 1):
        raise CheckpointError(f"{file.path} is one of several files; join them with llama-gguf-split --merge.")
    return str(found)


def _required(file: GGUFFile, key: str) -> int | float:
    value: Mapping[str, Any] | Any = file.metadata.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise CheckpointError(f"{file.path}: {key} must be a positive number, but is {value!r}.")
    return value


def _short(value: float) -> float:
    """Return the shortest number that float32, which files have, stores as this one: 1e-06 and not 9.99999997e-07."""
    return float(str(np.float32(value)))


def _renamed(name: str, swapped: bool) -> str:
    if swapped:
        name = name.replace("ffn_up", "ffn_swap").replace("ffn_down", "ffn_up").replace("swap", "down")
    for pattern, replacement in _RENAMES:
        renamed, count = pattern.subn(replacement, name)
        if count:
            return renamed
    return name
