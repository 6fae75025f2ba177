"""Weights in and out: what is refused, what is tolerated, and the way back to a file."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ternvl.checkpoint.source import load_config
from ternvl.checkpoint.weights import load, resolve_dtype, save
from ternvl.config import ModelConfig
from ternvl.errors import CheckpointError, TernvlError
from ternvl.model.internvl import InternVL
from tests.checkpoint import hf

SIZES = hf.SIZES[0]
NORM, QKV = "language_model.model.norm.weight", "vision_model.encoder.layers.0.attn.qkv.weight"
HEAD = "language_model.lm_head.weight"


def read(folder: Path, dtype: torch.dtype = torch.float32) -> InternVL:
    return load(folder, load_config(folder), dtype=dtype)


def checkpoint(folder: Path, layout: str = "original", **changes: torch.Tensor | None) -> Path:
    """A checkpoint whose tensors are changed; None takes one away. Dots are written as `__`."""
    hf.write(SIZES, folder, layout)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in changes.items():
        name = name.replace("__", ".")
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors")
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    tensors = hf.to_original(hf.build(SIZES).state_dict())
    hf.write(SIZES, tmp_path, "original")
    hf.write_tensors({name: tensor for name, tensor in tensors.items() if "ls" not in name}, tmp_path)
    layers = "vision_model.encoder.layers"
    assert f"4 missing: {layers}.0.ls1, {layers}.0.ls2, {layers}.1.ls1, {layers}.1.ls2." in refusal(tmp_path)
    hf.write_tensors({HEAD: tensors[HEAD]}, tmp_path)
    text = refusal(tmp_path)
    assert f"{len(tensors) - 1} missing: " in text
    assert f"and {len(tensors) - 6} more" in text


def test_unknown_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    wrong = {"language_model__model__norm__weight": torch.ones(7), "vision_model__q_norm__weight": torch.ones(3)}
    text = refusal(checkpoint(tmp_path, **wrong))
    assert "1 unknown: vision_model.q_norm.weight" in text
    assert f"1 of another shape: {NORM} [7] for [48]" in text


def test_a_third_of_qkv_is_missing_or_misshapen(tmp_path: Path) -> None:
    key = "vision_tower__encoder__layer__0__attention__k_proj__weight"
    assert f"1 missing: {QKV} (of which there is only" in refusal(checkpoint(tmp_path, "hf-old", **{key: None}))
    text = refusal(checkpoint(tmp_path, "hf-old", **{key: torch.ones(31, 32)}))
    assert "k_proj.weight [31, 32] for [32, 32]" in text


def test_harmless_extras_are_tolerated(tmp_path: Path) -> None:
    extras = {
        "language_model__model__layers__0__self_attn__rotary_emb__inv_freq": torch.ones(6),
        "vision_model__embeddings__position_ids": torch.arange(5),
    }
    prompt = hf.prompt(SIZES, (1,))
    logits = read(checkpoint(tmp_path, **extras))(prompt)
    assert torch.equal(logits, read(hf.write(SIZES, tmp_path, "original"))(prompt))


def test_integers_are_no_weights(tmp_path: Path) -> None:
    text = refusal(checkpoint(tmp_path, language_model__model__norm__weight=torch.ones(48, dtype=torch.int8)))
    assert f"Tensor {NORM} is of type I8" in text


def test_files_that_are_absent_or_broken(tmp_path: Path) -> None:
    hf.write(SIZES, tmp_path, "original", shards=3)
    second = tmp_path / "model-00002-of-00003.safetensors"
    whole = second.read_bytes()
    for broken in (whole[:-10], whole[:100], b"", b"version https://git-lfs.github.com/spec/v1\n"):
        second.write_bytes(broken)
        assert f"{second} is not a whole safetensors file" in refusal(tmp_path)
    second.unlink()
    assert "index.json names files that are not there: model-00002-of-00003.safetensors" in refusal(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text("{}")
    assert "needs an object under 'weight_map'" in refusal(tmp_path)
    index.unlink()
    assert "holds neither model.safetensors nor model.safetensors.index.json" in refusal(tmp_path)


def test_a_tokenizer_that_knows_more_tokens_than_the_embedding(tmp_path: Path) -> None:
    hf.write(SIZES, tmp_path, "original")
    spec = {"model": {"vocab": {"a": 0, "b": 129}}, "added_tokens": [{"id": 129}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    assert read(tmp_path).config.language.vocab_size == 130
    spec["added_tokens"] = [{"id": 130}]
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    assert "has token ids up to 130, but the model's embedding has 130 rows" in refusal(tmp_path)


def test_the_real_tokenizer_fits_the_real_vocabulary(tmp_path: Path) -> None:
    file = Path(__file__).resolve().parents[2] / "../shared/data/internvl3-tokenizer/tokenizer.json"
    if not file.is_file():
        pytest.skip("the real tokenizer is not here")
    hf.write(SIZES, tmp_path, "original")
    (tmp_path / "tokenizer.json").symlink_to(file.resolve())
    assert "token ids up to 151673, but the model's embedding has 130 rows" in refusal(tmp_path)


def test_a_head_is_tied_only_if_the_configuration_says_so_and_none_is_there(tmp_path: Path) -> None:
    hf.write(SIZES, tmp_path, "original")
    config = load_config(tmp_path)
    tied = dataclasses.replace(config, language=dataclasses.replace(config.language, tie_word_embeddings=True))
    own = load(tmp_path, tied, dtype=torch.float32)
    assert torch.equal(own.language_model.lm_head.weight, hf.build(SIZES).lm_head.weight)
    checkpoint(tmp_path, language_model__lm_head__weight=None)
    assert f"1 missing: {HEAD}." in refusal(tmp_path)
    model = load(tmp_path, tied, dtype=torch.float32)
    assert model.language_model.lm_head.weight is model.language_model.model.embed_tokens.weight
    save(model, tmp_path / "saved", dtype=torch.float32)
    again = read(tmp_path / "saved")
    assert again.language_model.lm_head.weight is again.language_model.model.embed_tokens.weight
    assert torch.equal(again(hf.prompt(SIZES)), model(hf.prompt(SIZES)))


def test_a_slow_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<img>": 129}))
    assert read(tmp_path).config.language.vocab_size == 130
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<img>": 130}))
    assert "token ids up to 130, but the model's embedding has 130 rows" in refusal(tmp_path)


@pytest.mark.parametrize("defaults", [{}, {"temperature": 0.0}, {"temperature": 0.6, "top_k": 40}], ids=str)
@pytest.mark.parametrize("max_shard_bytes", [10**9, 30_000])
def test_saved_and_loaded_again(tmp_path: Path, max_shard_bytes: int, defaults: dict[str, float]) -> None:
    config = load_config(hf.write(SIZES, tmp_path / "in", "hf-new"))
    config = dataclasses.replace(config, system_message="Be brief.", use_thumbnail=False, defaults=dict(defaults))
    model = load(tmp_path / "in", config, dtype=torch.float32)
    save(model, tmp_path / "out", dtype=torch.float32, max_shard_bytes=max_shard_bytes)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert (len(files) > 1) == (max_shard_bytes == 30_000)
    assert load_config(tmp_path / "out") == config
    again = read(tmp_path / "out").state_dict()
    assert again.keys() == hf.to_original(hf.build(SIZES).state_dict()).keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())
    for file in files:
        tensors = load_file(file).values()
        assert sum(tensor.nbytes for tensor in tensors) <= max_shard_bytes or len(tensors) == 1
        with safe_open(file, framework="pt") as opened:
            assert opened.metadata() == {"format": "pt"}


def test_saving_over_the_very_files_the_model_is_mapped_from(tmp_path: Path) -> None:
    model = read(hf.write(SIZES, tmp_path, "original", shards=3))
    before = model(hf.prompt(SIZES, (1,)))
    save(model, tmp_path, dtype=torch.bfloat16)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }
    assert torch.equal(model(hf.prompt(SIZES, (1,))), before)
    assert load_config(tmp_path).dtype == "bfloat16"
    with safe_open(tmp_path / "model.safetensors", framework="pt") as opened:
        assert {opened.get_slice(name).get_dtype() for name in opened.keys()} == {"BF16"}  # noqa: SIM118


def test_a_model_with_other_tensors_is_not_saved(tmp_path: Path) -> None:
    model = read(hf.write(SIZES, tmp_path, "original"))
    model.mlp1.register_buffer("scale", torch.ones(1))
    with pytest.raises(CheckpointError, match=r"differs in mlp1\.scale"):
        save(model, tmp_path / "out", dtype=torch.float32)
    assert not (tmp_path / "out").exists()


def test_weights_are_mapped_frozen_and_reported(tmp_path: Path) -> None:
    config = load_config(hf.write(SIZES, tmp_path, "original"))
    calls: list[tuple[int, int]] = []
    model = load(tmp_path, config, dtype=torch.float32, progress=lambda done, total: calls.append((done, total)))
    size = sum(parameter.numel() for parameter in model.parameters()) * 4
    assert calls[-1] == (size, size)
    assert calls == sorted(calls)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the kernel does not list mapped files")
def test_weights_of_the_wanted_type_stay_in_the_mapped_file(tmp_path: Path) -> None:
    model = read(hf.write(SIZES, tmp_path, "original"))
    mapped = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
    spans = [[int(end, 16) for end in line[0].split("-")] for line in mapped]
    for parameter in model.parameters():
        assert any(start <= parameter.data_ptr() < stop for start, stop in spans)


def test_the_type_to_compute_in(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(vision=None, language=None, dtype="bfloat16")  # type: ignore[arg-type]
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert resolve_dtype("auto", config, gpu) == torch.bfloat16
    assert resolve_dtype("float16", config, cpu) == torch.float16
    assert resolve_dtype("auto", dataclasses.replace(config, dtype="float32"), cpu) == torch.float32
    assert resolve_dtype("auto", config, cpu) == torch.float32
    with pytest.raises(TernvlError, match="dtype 'int4' is unknown; it is one of auto, bfloat16, float16, float32"):
        resolve_dtype("int4", config, cpu)
