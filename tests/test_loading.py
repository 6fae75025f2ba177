"""Loading: which scheme is chosen, and answers of models that are quantised as they are loaded."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from ternvl import LLM, SamplingParams
from ternvl.checkpoint import source
from ternvl.errors import ConfigError
from ternvl.kernels.loader import library
from ternvl.loading import resolve_scheme
from tests.quant.private_cache import private_cache

QUESTIONS = [[{"role": "user", "content": text}] for text in ("What is the capital of France?", "Hello")]


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    return private_cache(monkeypatch, tmp_path)


def test_answers_of_the_embedded_model_and_the_kept_file(cache: Path) -> None:
    wanted = [output.text for output in LLM().chat(QUESTIONS, SamplingParams(temperature=0))]
    for scheme in ("int8", "int4"):
        llm = LLM(quantization=scheme)
        assert [output.text for output in llm.chat(QUESTIONS, SamplingParams(temperature=0))] == wanted
        (path,) = cache.glob(f"{scheme}-*.safetensors")
        written = path.stat().st_mtime_ns
        again = LLM(quantization=scheme)
        assert path.stat().st_mtime_ns == written, "it is loaded, not made again"
        prompt = llm.prompt(QUESTIONS[0])
        assert torch.equal(llm.engine.model(prompt), again.engine.model(prompt))


def test_rows_of_a_quantised_model_are_alone() -> None:
    llm = LLM(quantization="int8")
    params = SamplingParams(temperature=1, seed=3, max_tokens=20, logprobs=2)
    together = llm.chat([*QUESTIONS, *QUESTIONS], params)
    for question, answer in zip(QUESTIONS, together, strict=False):
        alone = llm.chat(question, params)[0]
        assert alone.token_ids == answer.token_ids
        assert alone.logprobs == answer.logprobs


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="quantization is 'int5'"):
        LLM(quantization="int5")
    with pytest.raises(ConfigError, match="reference True"):
        LLM(quantization="int8", reference=True)
    with pytest.raises(ConfigError, match="dtype bfloat16"):
        LLM(quantization="int8", dtype="bfloat16")
    with pytest.raises(ConfigError, match="at least one image"):
        LLM(quantization="int8", calibration=tmp_path)


def test_auto_is_for_large_models_of_which_nothing_else_is_asked(tmp_path: Path) -> None:
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(10**9)  # sparse: its size is all that is asked
    loaded = library()
    assert loaded is not None

    def scheme(folder: Path, dtype: str = "auto", device: str = "cpu", reference: bool = False) -> str:
        return resolve_scheme("auto", folder, dtype=dtype, device=torch.device(device), reference=reference)

    assert scheme(tmp_path) == ("int8" if loaded.isa == "avx512vnni" else "none")
    assert scheme(source.resolve(None)) == "none"
    assert scheme(tmp_path, dtype="float32") == "none"
    assert scheme(tmp_path, reference=True) == "none"
    assert scheme(tmp_path, device="cuda") == "none"


def test_a_cache_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert LLM(quantization="int8").chat(QUESTIONS[0], SamplingParams(temperature=0))[0].text == "Paris."
    assert "cannot be kept" in caplog.text


def test_the_users_own_samples(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    folder.mkdir()
    Image.new("RGB", (50, 40), "red").save(folder / "red.png")
    (folder / "text.txt").write_text("What is the capital of Spain?")
    LLM(quantization="int8", calibration=folder)
    LLM(quantization="int8")
    assert len(list(cache.glob("int8-*.safetensors"))) == 2
