from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from ternvl.checkpoint import weights
from ternvl.llm import LLM
from tests.fakes import tiny_tokenizer
from tests.server.fakes import tiny_model


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the tiny random model."""
    path = tmp_path_factory.mktemp("models") / "tiny-vl"
    weights.save(tiny_model(), path, dtype=torch.float32)
    (path / "tokenizer.json").write_text(tiny_tokenizer().full.to_str(), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def offline(folder: Path) -> LLM:
    return LLM(folder, max_model_len=512)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "red.png"
    Image.new("RGB", (60, 40), "red").save(path)
    return path
