"""The random checkpoint has the shapes of the real one, and the same weights in every layout."""

from pathlib import Path

import pytest
import torch

from benchmarks import random_checkpoint
from ternvl.checkpoint.source import load_config
from ternvl.checkpoint.weights import load
from ternvl.config import LanguageConfig, ModelConfig, VisionConfig

TINY = ModelConfig(
    vision=VisionConfig(16, num_layers=2, num_heads=2, intermediate_size=24, image_size=28, patch_size=14),
    language=LanguageConfig(24, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=32, vocab_size=50),
)


def test_it_has_the_parameters_of_the_real_one() -> None:
    shapes = random_checkpoint.shapes()
    assert sum(shape.numel() for shape in shapes.values()) == 938_193_024
    assert sum(shape.numel() for name, shape in shapes.items() if name.startswith("vision_model.")) == 304_012_288
    assert sum(shape.numel() for name, shape in shapes.items() if name.startswith("mlp1.")) == 4_482_816


def test_a_seed_gives_one_model_in_every_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_checkpoint, "CONFIG", TINY)
    states = []
    for layout, seed in (*((layout, 1) for layout in random_checkpoint.LAYOUTS), ("original", 2)):
        folder = tmp_path / f"{layout} {seed}"
        random_checkpoint.write(folder, layout=layout, seed=seed)
        config = load_config(folder)
        assert config == TINY
        states.append(load(folder, config, dtype=torch.bfloat16).state_dict())
    first, *same, other = states
    assert all(torch.equal(state[name], tensor) for state in same for name, tensor in first.items())
    assert not any(torch.equal(other[name], tensor) for name, tensor in first.items())
