"""Writes the GGUF of a small trained llama as a checkpoint of InternVL in the original layout."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from ternvl.checkpoint import write_config
from ternvl.config import LanguageConfig, ModelConfig, VisionConfig
from ternvl.model.internvl import InternVL

# The tokens that InternVL has and the llama lacks.
_MORE = (
    *("<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"),
    *("<tool_call>", "</tool_call>"),
)
_CONTROL = 3
"""GGUF's type of control tokens."""
_VISION = VisionConfig(64, 1, 1, 128, image_size=112, patch_size=14)
_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def write_checkpoint(gguf: Path, folder: Path) -> None:
    """Write the checkpoint into a new folder. It needs the package gguf."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    reader = GGUFReader(gguf)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    config = _config(fields)
    found = {each.name: np.array(dequantize(each.data, each.tensor_type), np.float32) for each in reader.tensors}
    tensors = _random(config)
    tensors |= _decoder({name: torch.from_numpy(values) for name, values in found.items()}, config.language)
    _move_scales(tensors, config.language)
    folder.mkdir()
    save_file({name: each.contiguous() for name, each in tensors.items()}, folder / "model.safetensors")
    written = write_config.write(config, dtype="float32", tied=False)
    (folder / "config.json").write_text(json.dumps(written), "utf-8")
    _tokenizer(fields).save(str(folder / "tokenizer.json"))


def _config(fields: dict[str, Any]) -> ModelConfig:
    language = LanguageConfig(
        fields["llama.embedding_length"],
        num_layers=fields["llama.block_count"],
        num_heads=fields["llama.attention.head_count"],
        num_kv_heads=fields["llama.attention.head_count_kv"],
        intermediate_size=fields["llama.feed_forward_length"],
        vocab_size=len(fields["tokenizer.ggml.tokens"]) + len(_MORE),
        rms_norm_eps=float(fields["llama.attention.layer_norm_rms_epsilon"]),
        rope_theta=float(fields["llama.rope.freq_base"]),
        max_position_embeddings=fields["llama.context_length"],
    )
    return ModelConfig(_VISION, language)


def _random(config: ModelConfig) -> dict[str, Tensor]:
    """Return random weights for what a llama lacks; its biases, of q, k and v, are zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in InternVL(config).state_dict().items()}
    made: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        if name.startswith("language_model."):
            made[name] = torch.zeros(shape)
        elif "norm" in name or name.startswith("mlp1.0.") or ".ls" in name:
            made[name] = torch.full(shape, 0.0 if name.endswith("bias") else 1.0)
        else:
            made[name] = 0.05 * torch.randn(shape, generator=generator)
    return made


def _decoder(found: dict[str, Tensor], language: LanguageConfig) -> dict[str, Tensor]:
    """The decoder's tensors by InternVL's names."""
    embeddings = found["token_embd.weight"]
    embeddings = torch.cat([embeddings, embeddings.mean(dim=0, keepdim=True).repeat(len(_MORE), 1)])
    made = {"model.embed_tokens.weight": embeddings, "lm_head.weight": embeddings.clone()}
    made["model.norm.weight"] = found["output_norm.weight"]
    for name, tensor in found.items():
        if name.startswith("blk."):
            _, layer, kind, _ = name.split(".")
            heads = {"attn_q": language.num_heads, "attn_k": language.num_kv_heads}.get(kind)
            made[f"model.layers.{layer}.{_NAMES[kind]}.weight"] = tensor if heads is None else _halves(tensor, heads)
    return {f"language_model.{name}": tensor for name, tensor in made.items()}


def _halves(weight: Tensor, heads: int) -> Tensor:
    """Undo llama.cpp's order of rotary pairs: neighbours become the two halves of a head."""
    pairs: Tensor = weight.unflatten(0, (heads, -1, 2))
    return pairs.transpose(1, 2).flatten(0, 2)


def _move_scales(tensors: dict[str, Tensor], language: LanguageConfig) -> None:
    """Multiply what a matrix reads by random factors and divide the matrix by them: the function stays as it is."""
    generator = torch.Generator().manual_seed(1)
    group = language.num_heads // language.num_kv_heads

    def readings() -> Iterator[tuple[str, list[str], int]]:
        for i in range(language.num_layers):
            path = f"language_model.model.layers.{i}."
            yield path + "input_layernorm", [f"{path}self_attn.{each}_proj" for each in "qkv"], 1
            yield path + "post_attention_layernorm", [path + "mlp.gate_proj", path + "mlp.up_proj"], 1
            yield path + "mlp.up_proj", [path + "mlp.down_proj"], 1
            yield path + "self_attn.v_proj", [path + "self_attn.o_proj"], group
        yield "language_model.model.norm", ["language_model.lm_head"], 1

    for written, readers, times in readings():
        values = tensors[f"{written}.weight"]
        factors = torch.exp(torch.empty(len(values)).uniform_(-0.35, 0.35, generator=generator))
        tensors[f"{written}.weight"] = values * (factors if values.dim() == 1 else factors[:, None])
        factors = factors.view(language.num_kv_heads, 1, -1).expand(-1, times, -1).flatten() if times > 1 else factors
        for name in readers:
            tensors[f"{name}.weight"] = tensors[f"{name}.weight"] / factors


def _tokenizer(fields: dict[str, Any]) -> Tokenizer:
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    made = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges, fuse_unk=False))
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytes_of])
    made.decoder = decoders.ByteLevel()
    kinds = zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
    control = [token for token, kind in kinds if kind == _CONTROL]
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (*control, *_MORE)])
    return made
