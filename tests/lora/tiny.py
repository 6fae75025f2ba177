"""Small random adapters, written as PEFT saves them, and pools of them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from ternvl.config import EngineConfig, ModelConfig
from ternvl.lora.files import linears
from ternvl.lora.pool import AdapterPool

PARTS = (("language_model.",), ("mlp1.",), ("vision_model.",), ("language_model.", "mlp1.", "vision_model."), ("",))
"""Beginnings of the names of the modules that each of five adapters changes."""


def write(folder: Path, config: ModelConfig, seed: int, parts: tuple[str, ...] = ("language_model.",)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    generator, tensors, rank = torch.Generator().manual_seed(seed), {}, 2 + seed
    for name, (rows, inputs) in linears(config).items():
        if name.startswith(parts):
            tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator)
            tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(rows, rank, generator=generator) / 20
    values = {"peft_type": "LORA", "r": rank, "lora_alpha": rank}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def pool_of(config: ModelConfig, **options: int) -> AdapterPool:
    return AdapterPool(config, EngineConfig(**options), base="tiny", device=torch.device("cpu"))
