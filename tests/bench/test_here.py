"""What a model reaches on this machine: the work that is counted, the measurements and the advice."""

from __future__ import annotations

import json

import pytest
import torch

from ternvl.bench.here import Reached, Work, advice, measure_model
from ternvl.bench.limits import Limits
from ternvl.cli import main
from ternvl.kernels import loader
from ternvl.llm import LLM
from tests.server.fakes import tiny_config, tiny_llm

LIMITS = Limits("avx2", 2, read_bytes_per_s=20e9, int8_ops_per_s=1e12, fp32_ops_per_s=2e11)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return tiny_llm(max_model_len=2048)


def test_the_work_is_that_of_the_configuration(llm: LLM) -> None:
    config, work = tiny_config(), Work.of(llm)
    language, vision = config.language, config.vision
    heads = language.num_heads + 2 * language.num_kv_heads
    attention = language.hidden_size * (heads + language.num_heads) * language.head_dim
    layers = language.num_layers * (attention + 3 * language.hidden_size * language.intermediate_size)
    assert work.decoder_ops == 2 * layers
    head = language.vocab_size * language.hidden_size
    assert work.decoder_bytes >= 4 * (layers + head), "float32, and biases"
    assert work.decoder_bytes < 4.2 * (layers + head)
    tower = vision.num_layers * (4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size)
    patches = (vision.image_size // vision.patch_size) ** 2
    assert work.tile_ops > 2 * patches * tower


def test_all_is_measured_and_compared_with_the_limits(llm: LLM) -> None:
    found = measure_model(llm, LIMITS, repeats=1)
    assert [each.unit for each in found] == ["tokens/s", "tokens/s", "s", "s"]
    assert all(each.value > 0 for each in found)
    assert [bool(each.share) for each in found] == [True, False, True, True]
    assert "of 200.0" in found[3].share


@pytest.mark.parametrize(("value", "shown"), [(12345.6, "12,346"), (49.07, "49.1"), (0.0258, "0.026")])
def test_a_line(value: float, shown: str) -> None:
    assert Reached("one stream", value, "tokens/s").line().split()[-2:] == [shown, "tokens/s"]


def test_the_advice_names_what_is_wrong(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    fast, slow = [Reached("one stream", 1e9, "tokens/s")], [Reached("one stream", 1e-3, "tokens/s")]
    many = Limits("avx2", 10_000, read_bytes_per_s=20e9, int8_ops_per_s=1e12, fp32_ops_per_s=2e11)
    assert advice(llm, many, slow, load=0.0) == [], "weights in the caches have no limit"
    monkeypatch.setattr("ternvl.bench.here._CACHED", 0)
    assert [each.split()[0] for each in advice(llm, many, fast, load=0.0)] == ["The"]
    assert [each.split()[0] for each in advice(llm, many, slow, load=9_999.0)] == ["The", "The", "One"]
    alone = Limits("avx2", 0, read_bytes_per_s=20e9, int8_ops_per_s=1e12, fp32_ops_per_s=2e11)
    assert any("--threads" in each for each in advice(llm, alone, fast))


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    if not loader.available():
        pytest.skip("the limits are measured by native kernels, which there are none of here")
    with pytest.raises(SystemExit) as ended:
        main(["bench", "here"])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("one stream") for line in lines)
    assert "What to change:" in lines
    printed = json.loads(lines[-1])
    assert len(printed["reached"]) == 4
    assert printed["limits"]["num_threads"] == torch.get_num_threads()
