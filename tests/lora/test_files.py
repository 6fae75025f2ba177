"""Reading adapters' files: what is read, and what is refused by its name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ternvl.errors import AdapterError
from tests.lora import peft_adapters
from tests.lora.peft_adapters import read_small, small


def test_bfloat16_files_and_bfloat16_in_memory(tmp_path: Path) -> None:
    folder = small(tmp_path)
    tensors = load_file(folder / "adapter_model.safetensors")
    exact = read_small(folder)
    rounded = read_small(folder, dtype="bfloat16")
    assert rounded.num_bytes * 2 == exact.num_bytes
    peft_adapters.rewrite(folder, tensors={key: tensor.bfloat16() for key, tensor in tensors.items()})
    stored = read_small(folder)
    assert stored.num_bytes == rounded.num_bytes
    assert stored.digest != exact.digest
    for name, parts in stored.modules.items():
        assert torch.equal(parts[0].delta(), rounded.modules[name][0].delta())


def test_files_that_are_missing_or_broken(tmp_path: Path) -> None:
    folder = small(tmp_path)
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    _refused(folder, "adapter_model.safetensors", "invalid_adapter")
    weights.unlink()
    _refused(folder, "has no adapter_model.safetensors", "adapter_file_missing")
    weights.write_bytes(whole)
    config.write_text("[1")
    _refused(folder, "is not JSON", "invalid_adapter")
    config.unlink()
    _refused(folder, "has no adapter_config.json", "adapter_file_missing")


def test_tensors_that_do_not_fit(tmp_path: Path) -> None:
    folder = small(tmp_path)
    tensors = load_file(folder / "adapter_model.safetensors")
    key = next(key for key in tensors if key.endswith("o_proj.lora_A.weight"))

    def with_tensors(**changes: torch.Tensor | None) -> Path:
        changed = {name: tensor for name, tensor in (tensors | changes).items() if tensor is not None}
        return peft_adapters.rewrite(folder, tensors=changed)

    _refused(with_tensors(**{key: tensors[key][:, :-1].clone()}), key, "base_model_mismatch")
    _refused(with_tensors(**{key: None}), "without its other half", "invalid_adapter")
    broken = tensors[key].clone()
    broken[0, 0] = float("nan")
    _refused(with_tensors(**{key: broken}), "no numbers", "invalid_adapter")
    _refused(with_tensors(**{key: tensors[key].int()}), "int32", "invalid_adapter")
    magnitude = key.replace("lora_A.weight", "lora_magnitude_vector.weight")
    _refused(with_tensors(**{magnitude: torch.ones(3)}), magnitude, "unsupported_adapter")
    foreign = {name.replace("o_proj", "c_proj"): tensor.clone() for name, tensor in tensors.items() if "o_proj" in name}
    _refused(with_tensors(**foreign), "c_proj", "base_model_mismatch")
    stacked = "base_model.model.vision_model.encoder.layers.0.attn.qkv"
    part = "base_model.model.model.vision_tower.encoder.layer.0.attention.q_proj"
    both = {f"{name}.lora_{side}.weight": torch.ones(1) for name in (stacked, part) for side in "AB"}
    _refused(with_tensors(**both), "attn.qkv as a whole and in parts", "invalid_adapter")
    with pytest.raises(AdapterError, match="rank 4") as caught:
        read_small(with_tensors(), max_rank=3)
    assert caught.value.code == "lora_rank_too_large"
    assert read_small(folder, max_rank=4).rank == 4


def _refused(folder: Path, words: str, code: str) -> None:
    with pytest.raises(AdapterError) as caught:
        read_small(folder)
    assert words in str(caught.value)
    assert caught.value.code == code
