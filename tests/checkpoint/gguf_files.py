"""Writes GGUF files: a small writer of our own, and a model under llama.cpp's names."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ternvl.config import LanguageConfig, ModelConfig, VisionConfig
from ternvl.model.internvl import InternVL

CONFIG = ModelConfig(
    VisionConfig(64, 2, 4, 96, image_size=28, patch_size=7),
    LanguageConfig(64, 2, 4, 2, 96, 61, rms_norm_eps=1e-5, rope_theta=10_000.0, max_position_embeddings=128),
    dtype="float32",
)
F32, F16 = 0, 1
Encoded = tuple[int, tuple[int, ...], bytes]
"""The number of a format, the shape, and the bytes."""


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value(given: Any) -> bytes:
    """A value with its type before it."""
    if isinstance(given, bool):
        return struct.pack("<I?", 7, given)
    if isinstance(given, int):
        return struct.pack("<II", 4, given)
    if isinstance(given, float):
        return struct.pack("<If", 6, given)
    if isinstance(given, str):
        return struct.pack("<I", 8) + text(given)
    kind = {str: 8, float: 6, int: 5}[type(given[0])]
    items = [text(each) if kind == 8 else struct.pack("<f" if kind == 6 else "<i", each) for each in given]
    return struct.pack("<IIQ", 9, kind, len(given)) + b"".join(items)


def write(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Encoded]) -> Path:
    """Write a file of version 3."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    head += b"".join(text(key) + value(given) for key, given in metadata.items())
    data = b""
    for name, (kind, shape, content) in tensors.items():
        dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        head += text(name) + dimensions + struct.pack("<IQ", kind, len(data))
        data += content + bytes(-len(content) % 32)
    path.write_bytes(head + bytes(-len(head) % 32) + data)
    return path


def plain(tensor: Tensor) -> Encoded:
    """A tensor as it is."""
    kind = {torch.float32: F32, torch.float16: F16, torch.bfloat16: 30}[tensor.dtype]
    content = tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    return kind, tuple(tensor.shape), content


def language_metadata(config: LanguageConfig = CONFIG.language) -> dict[str, Any]:
    return {
        "general.architecture": "qwen2",
        "tokenizer.ggml.tokens": ["a", "b"],
        "qwen2.embedding_length": config.hidden_size,
        "qwen2.block_count": config.num_layers,
        "qwen2.attention.head_count": config.num_heads,
        "qwen2.attention.head_count_kv": config.num_kv_heads,
        "qwen2.feed_forward_length": config.intermediate_size,
        "qwen2.context_length": config.max_position_embeddings,
        "qwen2.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "qwen2.rope.freq_base": config.rope_theta,
    }


def vision_metadata(config: VisionConfig = CONFIG.vision) -> dict[str, Any]:
    return {
        "general.architecture": "clip",
        "clip.projector_type": "internvl",
        "clip.use_gelu": True,
        "clip.vision.projector.scale_factor": 2,
        "clip.vision.image_mean": [0.485, 0.456, 0.406],
        "clip.vision.image_std": [0.229, 0.224, 0.225],
        "clip.vision.embedding_length": config.hidden_size,
        "clip.vision.block_count": config.num_layers,
        "clip.vision.attention.head_count": config.num_heads,
        "clip.vision.feed_forward_length": config.intermediate_size,
        "clip.vision.image_size": config.image_size,
        "clip.vision.patch_size": config.patch_size,
        "clip.vision.attention.layer_norm_epsilon": config.layer_norm_eps,
    }


def language_tensors(model: InternVL) -> dict[str, Tensor]:
    """The language model's tensors under llama.cpp's names."""
    language = model.language_model
    found = {
        "token_embd.weight": language.model.embed_tokens.weight,
        "output_norm.weight": language.model.norm.weight,
        "output.weight": language.lm_head.weight,
    }
    for i, layer in enumerate(language.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        parts = {
            "attn_norm": layer.input_layernorm, "ffn_norm": layer.post_attention_layernorm,
            "attn_q": attention.q_proj, "attn_k": attention.k_proj, "attn_v": attention.v_proj,
            "attn_output": attention.o_proj, "ffn_gate": mlp.gate_proj, "ffn_up": mlp.up_proj,
            "ffn_down": mlp.down_proj,
        }  # fmt: skip
        for name, module in parts.items():
            found |= {f"blk.{i}.{name}.{kind}": tensor for kind, tensor in module.named_parameters()}
    return {name: tensor.detach() for name, tensor in found.items()}


def vision_tensors(model: InternVL, *, swapped: bool = False) -> dict[str, Tensor]:
    """The vision tower's and the projector's tensors under llama.cpp's names; `swapped` as older converters wrote."""
    embeddings = model.vision_model.embeddings
    found = {
        "v.class_embd": embeddings.class_embedding[0, 0],
        "v.position_embd.weight": embeddings.position_embedding[0],
        "v.patch_embd.weight": embeddings.patch_embedding.weight,
        "v.patch_embd.bias": embeddings.patch_embedding.bias,
    }
    first, second = ("ffn_down", "ffn_up") if swapped else ("ffn_up", "ffn_down")
    for i, layer in enumerate(model.vision_model.encoder.layers):
        parts = {"ln1": layer.norm1, "ln2": layer.norm2, "attn_out": layer.attn.proj}
        parts |= {first: layer.mlp.fc1, second: layer.mlp.fc2}
        for name, module in parts.items():
            found |= {f"v.blk.{i}.{name}.{kind}": tensor for kind, tensor in module.named_parameters()}
        for kind in ("weight", "bias"):
            thirds = getattr(layer.attn.qkv, kind).chunk(3)
            found |= {f"v.blk.{i}.attn_{name}.{kind}": third for name, third in zip("qkv", thirds, strict=True)}
        found |= {f"v.blk.{i}.ls1.weight": layer.ls1, f"v.blk.{i}.ls2.weight": layer.ls2}
    for number in (0, 1, 3):
        found |= {f"mm.model.mlp.{number}.{kind}": each for kind, each in model.mlp1[number].named_parameters()}
    return {name: tensor.detach() for name, tensor in found.items()}


def write_model(
    folder: Path, model: InternVL, encode: Callable[[Tensor], Encoded] = plain, *, swapped: bool = False
) -> Path:
    """Write both files of a model. `encode` is for matrices; other tensors are float32."""

    def encoded(tensors: Mapping[str, Tensor]) -> dict[str, Encoded]:
        return {name: encode(each) if each.ndim == 2 else plain(each) for name, each in tensors.items()}

    folder.mkdir(exist_ok=True)
    write(folder / "model.gguf", language_metadata(), encoded(language_tensors(model)))
    write(folder / "mmproj.gguf", vision_metadata(), encoded(vision_tensors(model, swapped=swapped)))
    return folder


def q4_0(tensor: Tensor) -> Encoded:
    """A matrix in Q4_0: blocks of a float16 scale and 32 numbers of 4 bits, 8 above their values."""
    blocks = tensor.float().reshape(-1, 32)
    extreme = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    scale = (extreme / -8).half()
    numbers = ((blocks / torch.where(scale != 0, scale, 1).float()).round().clamp(-8, 7) + 8).to(torch.uint8)
    content = torch.cat([scale.view(torch.uint8), numbers[:, :16] | numbers[:, 16:] << 4], dim=1)
    return 2, tuple(tensor.shape), content.numpy().tobytes()


def q8_0(tensor: Tensor) -> Encoded:
    """A matrix in Q8_0: blocks of a float16 scale and 32 signed bytes."""
    blocks = tensor.float().reshape(-1, 32)
    scale = (blocks.abs().amax(1, keepdim=True) / 127).half()
    numbers = (blocks / torch.where(scale != 0, scale, 1).float()).round().clamp(-127, 127).to(torch.int8)
    content = torch.cat([scale.view(torch.uint8), numbers.view(torch.uint8)], dim=1)
    return 8, tuple(tensor.shape), content.numpy().tobytes()
