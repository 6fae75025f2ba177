"""The guard: what it measures, and what it leaves unquantised."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ternvl.config import LanguageConfig, ModelConfig, VisionConfig
from ternvl.kernels.stage_types import Format, Layer
from ternvl.model.internvl import InternVL
from ternvl.quant import file, tries
from ternvl.quant.agreement import kl_divergence, logits_of
from ternvl.quant.conversion import quantize
from ternvl.quant.guard import MODEL, unsound, vision_layers
from ternvl.quant.tries import BOUNDS, relative_error
from ternvl.types import ImageSpan, Prompt
from tests.quant.private_cache import private_cache

CONFIG = ModelConfig(
    VisionConfig(64, 2, 4, 96, image_size=16, patch_size=4), LanguageConfig(64, 2, 4, 2, 96, vocab_size=61)
)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    return private_cache(monkeypatch, tmp_path)


def model(outliers: int = 0, times: float = 1.0) -> InternVL:
    """A model with random weights and `outliers` channels as in trained vision transformers.

    After the first vision layer's second norm these channels are `times` as large, and the weights that read them are
    smaller by the same factor, so the function is the same.
    """
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
def test_a_quantised_model_is_near_and_its_report_is_right(scheme: str) -> None:
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
    assert planted.tried["int8"] > BOUNDS[Format.INT8], "without smoothing the result would be noise"
    assert (planted.format, planted.smoothed) == ("int8", True)
    assert planted.error <= BOUNDS[Format.INT8]


def test_the_guard_measures_attention_among_patches() -> None:
    """One dimension is 1000 times as large in the keys and as much smaller in the queries: the same function."""
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


def test_a_stage_above_every_bound_stays_unquantised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BOUNDS, Format.INT8, 1e-6)
    made = model()
    wanted = made(samples()[0])
    reports = quantize(made, "int8", [*samples(), *pictures()])
    assert {report.format for report in reports} == {"float32"}
    stages = [report for report in reports if "patch_embedding" not in report.name and report.name != MODEL]
    assert all(report.tried["int8"] > 1e-6 for report in stages)
    assert relative_error(made(samples()[0]), wanted) < 1e-5


def test_the_report_on_the_whole_model_is_its_divergence() -> None:
    prompts = samples()
    wanted = torch.cat([model()(prompt)[20::3] for prompt in prompts])  # 7 of the last 20 of 40 positions
    made = model()
    reports = quantize(made, "int8", prompts)
    (report,) = (report for report in reports if report.name == MODEL)
    got = torch.cat([torch.cat(list(logits_of(made, prompt, 0)))[20::3] for prompt in prompts])
    assert report.format == "int8"
    assert report.error == pytest.approx(float(kl_divergence(wanted, got).mean()), rel=1e-6)
    assert 0 < report.error < 0.01
    assert unsound(reports) == ""


def test_layers_that_seem_good_do_not_make_the_model_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tries, "_error", lambda pieces: 0.0)  # no layer shows an error
    monkeypatch.setattr(tries, "pack_int8", lambda layer, *_, **__: tries.pack_int4(zeros(layer)))
    reports = quantize(model(), "int8", samples())
    assert all(report.error == 0 for report in reports if report.name != MODEL and "attention" not in report.name)
    assert "int8 is not sound for this model" in unsound(reports)


def zeros(layer: Layer) -> Layer:
    return replace(layer, weight=torch.zeros_like(layer.weight))


def test_outlier_channels_are_mixed_with_others() -> None:
    """The error of 8 bits is then near that without outliers."""
    name = "vision_model.encoder.layers.0.fc1"
    plain, planted = (
        {report.name: report for report in quantize(model(1, times), "int8", pictures())}[name] for times in (1.0, 30.0)
    )
    assert planted.tried["int8, mixed"] < 0.5 * planted.tried["int8"]
    assert planted.error < 2 * plain.error
