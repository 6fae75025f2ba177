"""AWQ checkpoints: the packing, whole models in both layouts, and what is refused.

The oracle packs and unpacks number by number, as AutoAWQ's `WQLinear_GEMM` is specified.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ternvl.checkpoint import source, tensor_files, weights
from ternvl.checkpoint.awq import unpacked
from ternvl.errors import CheckpointError
from tests.checkpoint import hf

SIZES = hf.Sizes(text=(64, 2, 4, 2, 96))
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
LAYERS = "language_model.model.layers"


def packed(numbers: list[list[int]]) -> Tensor:
    """Rows of numbers from 0 to 15 -> int32, eight outputs each."""
    rows = []
    for row in numbers:
        words = []
        for first in range(0, len(row), 8):
            word = 0
            for position, output in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
                word |= row[first + output] << (4 * position)
            words.append(word - (1 << 32 if word >> 31 else 0))
        rows.append(words)
    return torch.tensor(rows, dtype=torch.int32)


def quantised(weight: Tensor, group: int) -> tuple[dict[str, Tensor], Tensor]:
    """weight [N, K] -> the three tensors of AWQ, and the weight that they stand for, in float64."""
    n, k = weight.shape
    grouped = weight.double().view(n, k // group, group)
    low, high = grouped.amin(2), grouped.amax(2)
    scales = ((high - low) / 15).half()
    zeros = (-low / scales.double()).round().clamp(0, 15)
    whole = (grouped / scales.double()[..., None] + zeros[..., None]).round().clamp(0, 15)
    stood = (whole - zeros[..., None]) * scales.double()[..., None]
    tensors = {
        "qweight": packed(whole.flatten(1).T.int().tolist()),
        "qzeros": packed(zeros.T.int().tolist()),
        "scales": scales.T.contiguous(),
    }
    return tensors, stood.flatten(1)


def write(
    folder: Path, layout: str = "original", *, shards: int = 1, section: str | None = "llm_config"
) -> dict[str, Tensor]:
    """Write a checkpoint whose decoder layers are quantised; return the weights that they stand for, by name."""
    hf.write(SIZES, folder, layout)
    tensors = load_file(folder / "model.safetensors")
    wanted: dict[str, Tensor] = {}
    for name in list(tensors):
        if ".layers." in name and "vision" not in name and name.endswith("_proj.weight"):
            three, wanted[name] = quantised(tensors.pop(name), AWQ["group_size"])
            tensors |= {name.removesuffix("weight") + end: tensor for end, tensor in three.items()}
    (folder / "model.safetensors").unlink()
    hf.write_tensors(tensors, folder, shards)
    configure(folder, AWQ, section)
    return wanted


def configure(folder: Path, quantization: dict[str, Any], section: str | None = "llm_config") -> None:
    config = json.loads((folder / "config.json").read_text())
    (config if section is None else config[section])["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config))


def read(folder: Path) -> dict[str, Tensor]:
    return dict(weights.load(folder, source.load_config(folder), dtype=torch.float32).state_dict())


def test_the_order_of_the_packing() -> None:
    assert packed([[0, 1, 2, 3, 4, 5, 6, 7]]).item() == 0x75316420
    rng = torch.Generator().manual_seed(0)
    numbers = torch.randint(0, 16, (5, 48), generator=rng)
    assert torch.equal(unpacked(packed(numbers.tolist())).long(), numbers)


@pytest.mark.parametrize(
    ("layout", "shards", "section"),
    [("original", 1, "llm_config"), ("original", 5, None), ("hf-old", 1, None), ("hf-new", 3, "text_config")],
)
def test_a_model_is_what_was_written(tmp_path: Path, layout: str, shards: int, section: str | None) -> None:
    wanted = write(tmp_path, layout, shards=shards, section=section)
    assert source.load_config(tmp_path).dtype == "float32"
    state = read(tmp_path)
    assert len(wanted) == 14
    for name, weight in wanted.items():
        found = state[name if name in state else name.replace("model.language_model.", "language_model.model.")]
        assert torch.equal(found.double(), weight), f"{name} to the bit"
    assert not [name for name in tensor_files.tensor_names(tmp_path) if name.endswith(("qweight", "qzeros", "scales"))]


def test_other_weights_are_those_of_the_plain_checkpoint(tmp_path: Path) -> None:
    hf.write(SIZES, tmp_path / "plain", "original")
    wanted = write(tmp_path / "awq")
    plain, found = read(tmp_path / "plain"), read(tmp_path / "awq")
    assert plain.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in plain.items() if name not in wanted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quant_method": "gptq"}, "quant_method 'gptq' is not implemented"),
        ({"quant_method": "bitsandbytes"}, "quant_method 'bitsandbytes' is not implemented"),
        ({"quant_method": "compressed-tensors"}, "quant_method 'compressed-tensors' is not implemented"),
        ({"bits": 8}, "bits 8 is not implemented, only 4"),
        ({"version": "gemv"}, "version 'gemv' is not implemented, only 'gemm'"),
        ({"zero_point": False}, "zero_point False is not implemented, only True"),
        ({"group_size": -1}, "group_size must be a positive whole number, but is -1"),
    ],
)
@pytest.mark.parametrize("section", [None, "llm_config"])
def test_other_quantisations_are_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], message: str, section: str | None
) -> None:
    hf.write(SIZES, tmp_path, "original")
    configure(tmp_path, AWQ | changes, section)
    with pytest.raises(CheckpointError) as caught:
        source.load_config(tmp_path)
    assert message in str(caught.value)
    assert "quantization_config" in str(caught.value)
    assert "\n" not in str(caught.value)


def changed(folder: Path, name: str, tensor: Tensor | None) -> str:
    """Change a tensor or remove it, and return how the checkpoint is refused."""
    write(folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors if tensor is None else tensors | {name: tensor}, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        read(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_tensors_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    layer = f"{LAYERS}.1.mlp.down_proj"
    text = changed(tmp_path / "a", f"{layer}.qzeros", None)
    assert text == f"The AWQ layer {layer} has no tensor {layer}.qzeros."
    text = changed(tmp_path / "b", f"{layer}.scales", torch.ones(2, 64))
    assert f"Tensor {layer}.scales has the shape [2, 64], which does not fit {layer}.qweight [96, 8]" in text
    text = changed(tmp_path / "c", f"{layer}.qweight", torch.ones(96, 8))
    assert f"Tensor {layer}.qweight is F32 [96, 8], but must be a matrix of I32." in text
    text = changed(tmp_path / "d", f"{layer}.qweight", torch.ones(90, 8, dtype=torch.int32))
    assert "[90, 8] with groups of 32 inputs" in text
    text = changed(tmp_path / "e", f"{layer}.qweight", None)
    assert text == f"The AWQ layer {layer} has no tensor {layer}.qweight."
    write(tmp_path / "f")
    configure(tmp_path / "f", AWQ | {"group_size": 48})
    with pytest.raises(CheckpointError, match="with groups of 48 inputs"):
        read(tmp_path / "f")
