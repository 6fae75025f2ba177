"""The choice of the quantisation scheme, and the answers of models that are quantised when they are loaded."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from ternvl import LLM, SamplingParams
from ternvl.checkpoint import source
from ternvl.errors import ConfigError
from ternvl.kernels.loader import library
from ternvl.machine.cgroup import Cgroup
from ternvl.machine.num_threads import use_threads
from ternvl.quant import scheme as quant_scheme
from ternvl.quant.scheme import automatic_scheme, resolve_scheme, why_unquantised
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
        assert path.stat().st_mtime_ns == written, "the file is loaded, not converted again"
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


def test_invalid_settings(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="quantization is 'int5'"):
        LLM(quantization="int5")
    with pytest.raises(ConfigError, match="reference True"):
        LLM(quantization="int8", reference=True)
    with pytest.raises(ConfigError, match="dtype bfloat16"):
        LLM(quantization="int8", dtype="bfloat16")
    with pytest.raises(ConfigError, match="at least one image"):
        LLM(quantization="int8", calibration=tmp_path)


@pytest.mark.parametrize(
    ("isa", "size", "device", "why"),
    [
        ("avx512vnni", 10**9, "cpu", ""),
        ("avx512vnni", 10**8, "cpu", "gains nothing"),
        ("avx2", 10**9, "cpu", ""),
        ("avx512", 10**9, "cpu", ""),
        ("portable", 10**9, "cpu", "no AVX2"),
        ("neon", 10**9, "cpu", "no dot product of bytes"),
        ("dotprod", 10**9, "cpu", ""),
        ("i8mm", 10**9, "cpu", ""),
        (None, 10**9, "cpu", "no native kernels"),
        ("avx512vnni", 10**9, "cuda", "runs on cuda"),
    ],
)
def test_auto_says_why_it_does_not_quantise(
    monkeypatch: pytest.MonkeyPatch, isa: str | None, size: int, device: str, why: str
) -> None:
    loaded = None if isa is None else SimpleNamespace(isa=isa)
    monkeypatch.setattr(quant_scheme, "library", lambda: loaded)
    said = why_unquantised(size, torch.device(device))
    assert (why in said, bool(said)) == (True, bool(why))
    assert automatic_scheme(size, torch.device(device)) == ("none" if why else "int8")


def test_auto_is_for_large_models_with_default_settings(tmp_path: Path) -> None:
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(10**9)  # a sparse file, of which only the size matters
    loaded = library()
    assert loaded is not None

    def scheme(folder: Path, dtype: str = "auto", device: str = "cpu", reference: bool = False) -> str:
        return resolve_scheme("auto", folder, dtype=dtype, device=torch.device(device), reference=reference)

    assert scheme(tmp_path) == ("none" if loaded.isa == "portable" else "int8")
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


@pytest.fixture
def threads() -> Iterator[None]:
    """Gives the process its number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_threads_follow_the_quota_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("ternvl.machine.num_threads.usable_cores", lambda processors: 8)
    (tmp_path / "process").write_text("0::/\n")
    for quota, number in (("max", 4), ("400000", 4), ("160000", 2), ("100000", 1), ("20000", 1)):
        torch.set_num_threads(4)
        (tmp_path / "cpu.max").write_text(f"{quota} 100000\n")
        use_threads(None, Cgroup(tmp_path, tmp_path / "process"))
        assert torch.get_num_threads() == number
    torch.set_num_threads(4)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    use_threads(None, Cgroup(tmp_path, tmp_path / "process"))
    assert torch.get_num_threads() == 4


@pytest.mark.usefixtures("threads")
def test_threads_are_chosen() -> None:
    LLM(threads=3)
    assert torch.get_num_threads() == 3
    with pytest.raises(ConfigError, match="threads is 0, but must be at least 1"):
        LLM(threads=0)
