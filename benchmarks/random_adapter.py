"""Writes random LoRA adapters in PEFT's format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from ternvl.config import ModelConfig
from ternvl.lora.files import linears

RANK = 16


def write_adapter(
    folder: Path, config: ModelConfig, seed: int, *, parts: Sequence[str] = ("language_model.",), rank: int = RANK,
    size: float = 1.0,
) -> Path:  # fmt: skip
    """Write a random adapter for the linear layers whose names start with one of `parts`, without the head; return its
    folder."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (rows, inputs) in linears(config).items():
        if name.startswith(tuple(parts)) and "lm_head" not in name:
            a = torch.randn(rank, inputs, generator=generator) / inputs**0.5
            b = torch.randn(rows, rank, generator=generator) * size / rank
            tensors[f"base_model.model.{name}.lora_A.weight"] = a
            tensors[f"base_model.model.{name}.lora_B.weight"] = b
    folder.mkdir(parents=True, exist_ok=True)
    values = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder
