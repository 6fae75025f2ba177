"""The load generator against a tiny model: counts, failures and percentiles."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.server.fakes import serving as serve
from tests.server.fakes import tiny_llm

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("serving")


@pytest.mark.parametrize("flags", [["--concurrency", "2", "--images", "1", "--image-size", "50x30"], ["--rate", "50"]])
def test_counts_and_rates_are_consistent(serving: Any, capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    with serve(tiny_llm()) as url:
        asked = ["--requests", "5", "--prompt-tokens", "70", "--output-tokens", "6", *flags]
        assert serving.main(["--base-url", f"{url}/v1", *asked]) == 0
    out = capsys.readouterr().out
    result = json.loads(out.splitlines()[-1])
    assert "5 of 5 requests" in out
    assert (result["requests"], result["answered"], result["failures"]) == (5, 5, {})
    assert result["output_tokens"] == 5 * 6, "the length is forced"
    with_image = result["settings"]["images"] == 1
    assert result["prompt_tokens"] >= 5 * 74 if with_image else result["prompt_tokens"] == 5 * 70
    assert result["output_tokens_per_s"] == pytest.approx(30 / result["seconds"], rel=0.01)
    assert result["requests_per_s"] == pytest.approx(5 / result["seconds"], rel=0.01)
    for times in (result["ttft_ms"], result["inter_token_ms"], result["request_ms"]):
        assert 0 < times["p50"] <= times["p95"] <= times["p99"]
    assert result["ttft_ms"]["p50"] <= result["request_ms"]["p50"]
    assert result["settings"]["model"] == "tiny"


def test_failures_are_counted(serving: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(tiny_llm(), max_body_bytes=600) as url:
        code = serving.main(["--base-url", f"{url}/v1", "--requests", "3", "--prompt-tokens", "500"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert code == 1
    assert (result["answered"], result["failures"]) == (0, {"413": 3})
    assert result["ttft_ms"]["p50"] is None


def test_an_unreachable_server_is_an_error_of_one_line(serving: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert serving.main(["--base-url", "http://127.0.0.1:9/v1"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("serving.py: ")
    assert err.count("\n") == 1


def test_a_prompt_shorter_than_its_template(serving: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(tiny_llm()) as url:
        assert serving.main(["--base-url", f"{url}/v1", "--prompt-tokens", "3"]) == 1
    assert "--prompt-tokens is 3" in capsys.readouterr().err


def test_percentiles_and_prompts(serving: Any) -> None:
    load = importlib.import_module("load")
    assert load.spread([0.4, 0.1, 0.3, 0.2, 0.5]) == {"mean": 300, "p50": 300, "p95": 480, "p99": 496}
    args = serving.parse(["--shared-prefix", "5", "--images", "1"])
    one, two = (load.make_body(args, number, 20) for number in (1, 2))
    assert one == load.make_body(args, 1, 20)
    assert one["messages"][0] == two["messages"][0]
    assert one["messages"][1]["content"][0] != two["messages"][1]["content"][0]
    text = one["messages"][1]["content"][1]["text"]
    assert len(text) + 20 + 5 == 128
    assert text != two["messages"][1]["content"][1]["text"]
