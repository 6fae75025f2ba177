"""Quantisation: the guard, the kept file, and answers of a quantised model."""

from pathlib import Path

import pytest
import torch

from ternvl import LLM, SamplingParams
from ternvl.checkpoint import source
from ternvl.config import LanguageConfig, ModelConfig, VisionConfig
from ternvl.errors import CheckpointError, ConfigError
from ternvl.kernels.loader import available, library
from ternvl.loading import resolve_scheme
from ternvl.model.internvl import InternVL
from ternvl.quant import file
from ternvl.quant.guard import BOUNDS, Format, quantize, relative_error, vision_layers
from ternvl.types import ImageSpan, Prompt

QUESTIONS = [[{"role": "user", "content": text}] for text in ("What is the capital of France?", "Hello")]
CONFIG = ModelConfig(
    VisionConfig(64, 2, 4, 96, image_size=16, patch_size=4), LanguageConfig(64, 2, 4, 2, 96, vocab_size=61)
)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    if not available():
        pytest.skip("there is no compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / "ternvl" / "quantized"


def model(outliers: int = 0, times: float = 1.0) -> InternVL:
    """Random weights; `outliers` channels after the first vision layer's second norm are `times` as large, as those of
    trained vision transformers can be, and the weights that read them are smaller: the function is the same."""
    torch.manual_seed(0)
    made = InternVL(CONFIG).requires_grad_(False).eval()
    for name, parameter in made.named_parameters():
        parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
        if "norm" in name and name.endswith("weight"):
            parameter.fill_(1)
    layer = made.vision_model.encoder.layers[0]
    layer.norm2.weight[:outliers] *= times
    layer.mlp.fc1.weight[:, :outliers] /= times
    return made


def samples() -> list[Prompt]:
    torch.manual_seed(1)
    return [Prompt(tuple(torch.randint(0, 61, (40,)).tolist())) for _ in range(3)]


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_a_quantised_model_is_near_and_its_report_true(scheme: str) -> None:
    prompts = samples()
    plain = model()
    wanted = plain(prompts[0])
    reports = quantize(plain, scheme, prompts)
    assert relative_error(plain(prompts[0]), wanted) < (0.05 if scheme == "int8" else 0.3)
    for report in reports:
        if report.name.startswith("language_model"):
            assert report.format in ("int8", scheme)
            assert 0 < report.error <= BOUNDS[Format[report.format.upper()]]
        if report.name.startswith("vision_model"):
            assert report.format == "float32", "no sample has an image, so nothing was measured"


def pictures() -> list[Prompt]:
    torch.manual_seed(2)
    image = ImageSpan(start=2, num_tokens=4 * CONFIG.tokens_per_tile, first_tile=0, num_tiles=4, digest=b"")
    return [Prompt((1,) * (image.stop + 3), (image,), torch.randn(4, 3, 16, 16))]


def test_the_guard_catches_planted_outlier_channels() -> None:
    name = "vision_model.encoder.layers.0.fc1"
    plain, planted = (
        {report.name: report for report in quantize(model(6, times), "int8", pictures())}[name]
        for times in (1.0, 100.0)
    )
    assert plain.format == "int8"
    assert not plain.smoothed
    assert planted.tried["int8"] > BOUNDS[Format.INT8], "as it is it would be noise"
    assert planted.smoothed or planted.format == "float32"
    assert planted.error <= BOUNDS[Format.INT8]


def test_the_guard_measures_attention_among_patches() -> None:
    """A dimension of all keys is 1000 times as large and that of the queries as much smaller: the same function."""
    name = "vision_model.encoder.layers.0.attention"
    for times in (1, 1000):
        made, prompt = model(), pictures()[0]
        qkv = made.vision_model.encoder.layers[0].attn.qkv
        for head in range(4):
            qkv.weight[16 * head] /= times
            qkv.weight[64 + 16 * head] *= times
        qkv.bias.zero_()
        assert prompt.pixel_values is not None
        wanted = made.encode_tiles(prompt.pixel_values)
        report = {report.name: report for report in quantize(made, "int8", pictures())}[name]
        layer = dict(vision_layers(made))["vision_model.encoder.layers.0"]
        assert relative_error(made.encode_tiles(prompt.pixel_values), wanted) < 0.05
        assert (report.format == "int8") is layer.attends_in_int8 is (times == 1)
        assert (report.tried["int8"] <= BOUNDS[Format.INT8]) is (times == 1)
        file.save(made, [report], path := file.cache_folder() / "model.safetensors")
        kept = dict(vision_layers(file.load(path, CONFIG)[0]))
        assert {name: layer.attends_in_int8 for name, layer in kept.items()} == {
            name: layer.attends_in_int8 for name, layer in vision_layers(made)
        }


def test_a_stage_that_nothing_fits_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BOUNDS, Format.INT8, 1e-6)
    made = model()
    wanted = made(samples()[0])
    reports = quantize(made, "int8", [*samples(), *pictures()])
    assert {report.format for report in reports} == {"float32"}
    assert all(report.tried["int8"] > 1e-6 for report in reports if "patch_embedding" not in report.name)
    assert relative_error(made(samples()[0]), wanted) < 1e-5


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


@pytest.mark.parametrize("damage", ["cut short", "empty", "no length", "no header", "no object", "no tensors"])
def test_a_file_that_is_not_whole_is_made_anew(damage: str, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    llm = LLM(quantization="int8")
    (path,) = cache.glob("int8-*.safetensors")
    whole = path.read_bytes()
    size = whole[:8]
    broken = {
        "cut short": whole[: len(whole) // 2],
        "empty": b"",
        "no length": b"\xff" * len(whole),
        "no header": size + b"\xff" * (len(whole) - 8),
        "no object": (2).to_bytes(8, "little") + b"[]",
        "no tensors": (2).to_bytes(8, "little") + b"{}",
    }
    path.write_bytes(broken[damage])
    with pytest.raises(CheckpointError, match="not a whole quantised model"):
        file.load(path, llm.config)
    LLM(quantization="int8")
    assert "made anew" in caplog.text
    assert path.read_bytes() == whole


def test_a_changed_checkpoint_has_another_file(tmp_path: Path) -> None:
    for content in (b"one", b"two"):
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / "model.safetensors").write_bytes(content)
        path = file.path_for(tmp_path / "a", "int8", "samples")
        assert file.path_for(tmp_path / "a", "int8", "samples") == path
        assert file.path_for(tmp_path / "a", "int4", "samples") != path
        assert file.path_for(tmp_path / "a", "int8", "others") != path
    assert len(list((tmp_path / "ternvl" / "quantized" / "digests").iterdir())) == 2


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
    (tmp_path / "ternvl").write_text("a file where the folder should be")
    assert LLM(quantization="int8").chat(QUESTIONS[0], SamplingParams(temperature=0))[0].text == "Paris."
    assert "cannot be kept" in caplog.text


def test_the_users_own_samples(cache: Path, tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "samples"
    folder.mkdir()
    Image.new("RGB", (50, 40), "red").save(folder / "red.png")
    (folder / "text.txt").write_text("What is the capital of Spain?")
    LLM(quantization="int8", calibration=folder)
    LLM(quantization="int8")
    assert len(list(cache.glob("int8-*.safetensors"))) == 2
