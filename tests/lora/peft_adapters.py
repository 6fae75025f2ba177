"""The oracle: adapters that PEFT makes and saves for transformers' model in `hf.py`, with keys in every layout."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Qwen2ForCausalLM

from ternvl.checkpoint.source import load_config
from ternvl.lora.adapter import Adapter
from ternvl.lora.files import linears, read
from tests.checkpoint import hf

LANGUAGE = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""The vision tower has modules named q_proj, k_proj and v_proj as well."""
VISION = ["projection_layer", "fc1", "fc2"]
PROJECTOR = ["linear_1", "linear_2"]
SHAPES = ("hf-new", "hf-old", "original", "text-only")
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"q_proj": 7, r"layers\.1\.mlp\.up_proj": 3, "fc1": 2},
        "alpha_pattern": {"o_proj": 3, "language_model.layers.0.self_attn.v_proj": 11, "layers.0.self_attn.q_proj": 9},
    },
}


def text_model(sizes: hf.Sizes) -> Qwen2ForCausalLM:
    """The decoder of `hf.build(sizes)` as a separate model."""
    whole = hf.build(sizes)
    model = Qwen2ForCausalLM(whole.config.text_config).eval().requires_grad_(False)
    state = {f"model.{name}": tensor for name, tensor in whole.model.language_model.state_dict().items()}
    model.load_state_dict(state | {"lm_head.weight": whole.lm_head.weight})
    return model


def make(base: nn.Module, targets: list[str], *, seed: int = 0, rank: int = 4, **options: Any) -> PeftModel:
    """An adapter with random weights that are large enough to change the model's answers."""
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, **options)
    model = get_peft_model(copy.deepcopy(base), config).eval()
    randomise(model, seed)
    return model


@torch.no_grad()
def randomise(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4 / parameter.shape[1] ** 0.5)


def tie_thirds(model: PeftModel) -> None:
    """Give the vision tower's queries, keys and values one lora_A, as the original's stacked layer has."""
    for layer in model.get_base_model().model.vision_tower.encoder.layer:
        attention = layer.attention
        for other in (attention.k_proj, attention.v_proj):
            other.lora_A["default"].weight.data.copy_(attention.q_proj.lora_A["default"].weight)


def save(model: PeftModel, folder: Path, shape: str) -> Path:
    """Save an adapter of transformers' model with the keys of one of `SHAPES`."""
    model.save_pretrained(str(folder), save_embedding_layers=False)  # they would be saved if lm_head is a target
    path = folder / "adapter_model.safetensors"
    state = load_file(path)
    if shape in ("hf-old", "original"):
        path.unlink()
        save_file({"hf-old": _old, "original": _original}[shape](state), path)
    return folder


def _old(state: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = "base_model.model.model."
    return {
        key.replace(prefix + "language_model.", "base_model.model.language_model.model.").replace(
            prefix, "base_model.model."
        ): tensor
        for key, tensor in state.items()
    }


def _original(state: dict[str, Tensor]) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    thirds: dict[str, list[Tensor]] = {}
    for key, tensor in state.items():
        name = key.replace("base_model.model.model.", "base_model.model.")
        name = name.replace("language_model.layers.", "language_model.model.layers.")
        name = name.replace("base_model.model.lm_head", "base_model.model.language_model.lm_head")
        name = name.replace("vision_tower.encoder.layer.", "vision_model.encoder.layers.")
        name = name.replace("attention.projection_layer", "attn.proj")
        name = name.replace("multi_modal_projector.linear_1", "mlp1.1").replace(
            "multi_modal_projector.linear_2", "mlp1.3"
        )
        if ".attention." in name:
            stacked = name.replace(".attention.q_proj", ".attn.qkv").replace(".attention.k_proj", ".attn.qkv")
            thirds.setdefault(stacked.replace(".attention.v_proj", ".attn.qkv"), []).append(
                (["q", "k", "v"].index(name.split("_proj")[0][-1]), tensor)
            )
        else:
            out[name] = tensor
    for name, parts in thirds.items():
        ordered = [tensor for _, tensor in sorted(parts, key=lambda part: part[0])]
        out[name] = ordered[0] if ".lora_A." in name else torch.cat(ordered)
    return out


def rewrite(folder: Path, *, config: dict[str, Any] | None = None, tensors: dict[str, Tensor] | None = None) -> Path:
    """Change fields of an adapter's configuration, and replace all of its tensors if `tensors` is given."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | (config or {})))
    if tensors is not None:
        (folder / "adapter_model.safetensors").unlink()
        save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def small(folder: Path, targets: list[str] | None = None, shape: str = "hf-new", **options: Any) -> Path:
    """An adapter of the smallest model, in `folder`/adapter."""
    made = make(hf.build(hf.SIZES[0]), targets or ["o_proj", "fc1"], **options)
    return save(made, folder / "adapter", shape)


def read_small(folder: Path, **options: Any) -> Adapter:
    """The adapter that `small` wrote, read for the smallest model."""
    shapes = linears(load_config(hf.write(hf.SIZES[0], folder.parent / "model", "original")))
    return read(folder, "own", shapes, **options)
