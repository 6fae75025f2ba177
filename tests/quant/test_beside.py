"""A conversion in a process of its own, for the next start."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from ternvl import LLM
from ternvl.errors import ConfigError
from ternvl.fused.replace import is_quantized
from ternvl.quant import beside
from tests.quant.private_cache import private_cache
from tests.waiting import eventually


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Path:
    caplog.set_level(logging.INFO)
    return private_cache(monkeypatch, tmp_path)


@pytest.mark.timeout(300)  # a process that imports torch
def test_answers_are_unquantised_until_the_next_start(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert not is_quantized(LLM(quantization="int8", conversion="beside").engine.model)
    assert "The model is unquantised until the next start; it is being converted to int8 beside." in caplog.messages
    eventually(lambda: "The conversion to int8 is done; the next start uses it." in caplog.messages, 240)
    assert is_quantized(LLM(quantization="int8", conversion="beside").engine.model)
    assert len(list(cache.glob("int8-*.safetensors"))) == 1


@pytest.mark.timeout(300)
def test_a_conversion_that_fails_says_why(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder should be")
    LLM(quantization="int8", conversion="beside")
    eventually(lambda: "The conversion to int8 ended with a problem: ternvl: " in caplog.text, 240)
    assert str(cache) in caplog.text


def test_without_memory_for_both_the_conversion_comes_first(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ternvl.loading.free_memory", lambda device: 10**9)
    assert is_quantized(LLM(quantization="int8", conversion="beside").engine.model)
    assert "The conversion to int8 comes first: 1.0 GB of memory are free, and both together need 2.2 GB." in (
        caplog.messages
    )


def test_without_another_process_the_conversion_comes_first(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(beside.subprocess, "Popen", refuse)
    assert is_quantized(LLM(quantization="int8", conversion="beside").engine.model)
    assert "comes first: no process can be started" in caplog.text


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"^conversion is 'never'; it is one of first"):
        LLM(conversion="never")
    with pytest.raises(ConfigError, match="with a lock all answers must come from the locked weights"):
        beside.check("beside", Path("ternvl.lock"))
