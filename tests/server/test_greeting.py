"""What the server prints at its start is true of the model that it has loaded."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ternvl.checkpoint import weights
from ternvl.config import ServerConfig
from ternvl.kernels.stage_types import Format
from ternvl.llm import LLM
from ternvl.model.internvl import num_parameters
from ternvl.quant.guard import stages
from ternvl.server.greeting import greeting
from ternvl.server.serving import Serving
from tests.fakes import tiny_tokenizer
from tests.server.fakes import tiny_config, tiny_llm, tiny_model


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def rows(text: str) -> dict[str, str]:
    return dict(re.findall(r"^([A-Z][\w ]+): +(.*)$", text, re.MULTILINE))


def test_the_lines_are_true(listener: socket.socket) -> None:
    llm = tiny_llm(max_model_len=256, kv_cache_memory=2**20)
    said = greeting(Serving(llm, ServerConfig(served_model_name=("one",))), [listener])
    shown, url = rows(said), f"http://127.0.0.1:{listener.getsockname()[1]}"
    count = sum(parameter.numel() for parameter in tiny_model().parameters())
    assert num_parameters(tiny_config()) == count
    assert shown["Model"] == f"one, {count:,} parameters"
    assert shown["Weights"] == f"float32, {4 * count / 1000:.1f} kB, not quantised"
    assert shown["Context"] == "256 tokens"
    assert shown["KV cache"] == f"1.0 MB holds {2**20 // (2 * 2 * 16 * 16 * 4) * 16:,} tokens"
    assert shown["Runs on"].startswith(f"{torch.get_num_threads()} thread")
    assert shown["Keys"] == "none needed"
    assert "Adapters" not in shown
    assert f"one is served at {url}/v1\nThe playground, a page for your browser: {url}/\n" in said
    assert "Authorization" not in said


def test_keys_are_needed(listener: socket.socket) -> None:
    said = greeting(Serving(tiny_llm(), ServerConfig(api_key="secret", playground=False)), [listener])
    assert rows(said)["Keys"] == "needed; 1 is in force"
    assert '-H "Authorization: Bearer $TERNVL_API_KEY"' in said
    assert "secret" not in said
    assert "playground" not in said


def test_a_quantised_model_names_what_the_guard_kept(
    listener: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    weights.save(tiny_model(), tmp_path / "tiny", dtype=torch.float32)
    (tmp_path / "tiny" / "tokenizer.json").write_text(tiny_tokenizer().full.to_str(), encoding="utf-8")
    llm = LLM(tmp_path / "tiny", quantization="int8", max_model_len=256)
    chosen = {name: stage for name, stage in stages(llm.engine.model) if "patch_embedding" not in name}
    for stage in chosen.values():
        stage.format = Format.INT8
    said = rows(greeting(Serving(llm, ServerConfig()), [listener]))["Weights"]
    assert re.fullmatch(rf"int8, [\d.]+ kB; the guard kept none of {len(chosen)} layers in more bits", said)
    for stage in list(chosen.values())[:2]:
        stage.format = Format.FLOAT32
    assert rows(greeting(Serving(llm, ServerConfig()), [listener]))["Weights"].endswith(
        f"the guard kept 2 of {len(chosen)} layers in more bits: 2 in float32"
    )
