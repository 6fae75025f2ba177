"""A model that adapters may change, and random adapters for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ternvl.llm import LLM
from ternvl.model.internvl import InternVL
from tests.fakes import tiny_tokenizer
from tests.server.fakes import tiny_config


def make_llm(**options: Any) -> LLM:
    """Models of their own: one that has adapters is run by one engine."""
    torch.manual_seed(3)
    options = {"max_model_len": 512, "max_num_seqs": 8, **options}
    return LLM.from_parts(InternVL(tiny_config()), tiny_tokenizer(), name="tiny", **options)


def write_adapter(folder: Path, seed: int, *, rank: int = 2, vision: bool = False, **config: Any) -> Path:
    """A random adapter of the tiny model, large enough to change what it says."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    shapes = {f"language_model.model.layers.{layer}.mlp.down_proj": (32, 32) for layer in range(2)}
    if vision:
        shapes = {"mlp1.3": (32, 32), "vision_model.encoder.layers.0.attn.qkv": (48, 16)}
    tensors = {}
    for module, (rows, inputs) in shapes.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator)
        tensors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(rows, rank, generator=generator)
    values = {"peft_type": "LORA", "r": rank, "lora_alpha": 16, "base_model_name_or_path": "tiny", **config}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def files(folder: Path) -> dict[str, Any]:
    return {name: (folder / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors")}
