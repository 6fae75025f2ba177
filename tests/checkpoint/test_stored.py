"""Weights of 4 bits as a checkpoint has them: what is kept, what is rounded a second time, and what is said of it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ternvl.checkpoint import source, weights
from ternvl.checkpoint.stored import StoredWeights, has_four_bits, rounding
from ternvl.errors import ConfigError
from ternvl.gguf.file import GGUFFile
from ternvl.gguf.formats import FORMATS
from ternvl.kernels.panels import GROUP
from ternvl.kernels.stage import unpack_affine4
from ternvl.kernels.stage_types import Format, FourBits
from ternvl.llm import LLM
from ternvl.params import SamplingParams
from ternvl.quant import file
from ternvl.quant.conversion import quantize
from ternvl.quant.guard import stages
from ternvl.quant.scheme import automatic_scheme, resolve_scheme
from ternvl.quant.size import weight_bytes
from ternvl.quant.tries import relative_error
from ternvl.server.greeting import _weights
from ternvl.types import Prompt
from tests.checkpoint import test_awq
from tests.checkpoint.gguf_files import CONFIG, Encoded, plain, q4_0, q8_0, write, write_model
from tests.checkpoint.test_gguf import random_blocks
from tests.cli.calling import run
from tests.engine.tiny import make_model
from tests.quant.private_cache import private_cache

LAYERS = "language_model.model.layers"
HEAD = "language_model.lm_head"


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    return private_cache(monkeypatch, tmp_path)


def weight_of(bits: FourBits) -> Tensor:
    scales, offsets = (each.repeat_interleave(GROUP, dim=1) for each in (bits.scales, bits.offsets))
    return scales * bits.whole.float() + offsets


@pytest.mark.parametrize("number", [number for number, format in FORMATS.items() if format.split])
def test_numbers_scales_and_offsets_are_the_weights_to_the_bit(tmp_path: Path, number: int) -> None:
    format = FORMATS[number]
    shape = (5, 3 * format.block_size)
    tensor = (number, shape, random_blocks(number, 15, number))
    opened = GGUFFile(write(tmp_path / "x.gguf", {"general.alignment": 32}, {"x": tensor}))
    numbers, scales, offsets = opened.get_four_bits("x")
    assert (int(numbers.min()), int(numbers.max()), numbers.dtype) == (0, 15, torch.int8)
    assert scales.shape == offsets.shape == (5, shape[1] // GROUP)
    assert np.array_equal(weight_of(FourBits(numbers, scales, offsets)), opened.get_tensor("x"))


def test_awq_is_kept_to_the_bit(tmp_path: Path) -> None:
    wanted = test_awq.write(tmp_path)
    stored = StoredWeights(tmp_path)
    assert stored.names() == wanted.keys()
    assert stored.formats() == {"AWQ": 14, "F32": 1}
    for name, weight in wanted.items():
        bits = stored.get([name])
        assert bits is not None
        scales, offsets = (each.double().repeat_interleave(GROUP, dim=1) for each in bits[1:])
        assert torch.equal(scales * bits.whole.double() + offsets, weight)
    first, second = sorted(name for name in wanted if "layers.0.mlp" in name and "down" not in name)
    both = stored.get([first, second])
    assert both is not None
    assert torch.equal(weight_of(both), torch.cat([wanted[first], wanted[second]]).float())
    assert stored.get([first, f"{HEAD}.weight"]) is None


def encode(tensor: Tensor) -> Encoded:
    """Matrices in Q4_0, but the head (as many rows as the vocabulary) in Q8_0, and what does not fit as it is."""
    if tensor.shape[1] % 32:
        return plain(tensor)
    return q8_0(tensor) if len(tensor) == CONFIG.language.vocab_size else q4_0(tensor)


def prompts() -> list[Prompt]:
    torch.manual_seed(1)
    return [Prompt(tuple(torch.randint(0, 61, (40,)).tolist())) for _ in range(3)]


def test_a_converted_model_has_the_checkpoints_own_bits(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", make_model(CONFIG), encode)
    config = source.load_config(folder)
    model = weights.load(folder, config, dtype=torch.float32)
    wanted, stored = model(prompts()[0]), StoredWeights(folder)
    reports = {report.name: report for report in quantize(model, "checkpoint", prompts(), stored=stored)}
    assert relative_error(model(prompts()[0]), wanted) < 0.05  # what rounding the inputs costs
    found = dict(stages(model))
    kept = [name for name, stage in found.items() if stage.format is Format.AFFINE4]
    assert sorted(kept) == sorted(f"{LAYERS}.{i}.{name}" for i in range(2) for name in ("qkv", "o", "gate_up", "down"))
    assert {reports[name].format for name in kept} == {"affine4"}
    assert (found[HEAD].format, reports[HEAD].format) == (Format.INT8, "int8")
    names = [f"{LAYERS}.1.mlp.{name}_proj.weight" for name in ("gate", "up")]
    expected = stored.get(names)
    assert expected is not None
    kept_bits = unpack_affine4(found[f"{LAYERS}.1.gate_up"])
    assert all(torch.equal(one, other) for one, other in zip(kept_bits, expected, strict=True))


def nano(folder: Path) -> Path:
    """The embedded model in GGUF: the matrices of the language model in Q4_0."""
    original = weights.load(source.EMBEDDED, source.load_config(source.EMBEDDED), dtype=torch.float32)
    write_model(folder, original, lambda tensor: plain(tensor) if tensor.shape[1] % 256 else q4_0(tensor))
    for path in source.EMBEDDED.glob("*.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_answers_with_the_checkpoints_own_bits_and_an_adapter(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = nano(tmp_path / "nano")
    adapter = source.EMBEDDED.parent / "adapters" / "french"
    exact = LLM(folder)
    with caplog.at_level(logging.INFO):
        llm = LLM(folder, quantization="checkpoint")
    for each in (exact, llm):
        each.load_adapter("french", adapter)
    assert "29 matrices in Q4_0 kept as they are" in caplog.text
    (path,) = cache.glob("checkpoint-*.safetensors")
    written = path.stat().st_mtime_ns
    params = SamplingParams(temperature=0, max_tokens=16)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    for name in (None, "french"):
        texts = [each.chat(question, params, adapter=name)[0].text for each in (exact, llm)]
        assert texts[0] == texts[1]
    assert "in the checkpoint's 4 bits" in _weights(llm.engine.model)
    prompt = llm.prompt(question)
    assert relative_error(llm.engine.model(prompt), exact.engine.model(prompt)) < 0.05
    again = LLM(folder, quantization="checkpoint")
    assert path.stat().st_mtime_ns == written, "the file is loaded, not converted again"
    assert torch.equal(again.engine.model(prompt), LLM(folder, quantization="checkpoint").engine.model(prompt))


@pytest.mark.parametrize("scheme", ["int8", "checkpoint"])
def test_the_embedding_keeps_its_blocks(tmp_path: Path, scheme: str) -> None:
    folder = write_model(tmp_path / "model", make_model(CONFIG), encode)
    config, stored = source.load_config(folder), StoredWeights(folder)
    model = weights.load(folder, config, dtype=torch.float32)
    wanted = model.language_model.model.embed_tokens.weight
    reports = quantize(model, scheme, prompts(), stored=stored)
    file.save(model, reports, tmp_path / "kept.safetensors")
    ids = torch.tensor([[3, 60], [0, 3]])
    loaded = file.load(tmp_path / "kept.safetensors", config)[0]
    for each in (model, loaded):
        embedding = each.language_model.model.embed_tokens
        assert sum(tensor.nbytes for tensor in embedding.buffers()) == 61 * 2 * 34, "bytes of Q8_0"
        assert not list(embedding.parameters())
        assert torch.equal(embedding(ids), wanted[ids])
    assert torch.equal(loaded(prompts()[0]), model(prompts()[0]))


def test_a_checkpoint_without_such_bits_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", make_model(CONFIG), q8_0_or_plain)
    cpu = torch.device("cpu")
    with pytest.raises(ConfigError) as caught:
        resolve_scheme("checkpoint", folder, dtype="auto", device=cpu, reference=False)
    kept = "AWQ, Q4_0, Q4_1, Q4_K"
    assert str(caught.value) == f"quantization is 'checkpoint', but {folder} has no weights of 4 bits ({kept}) to keep."
    with pytest.raises(ConfigError, match=r"has no weights of 4 bits"):
        LLM(quantization="checkpoint")
    assert not has_four_bits(source.EMBEDDED)


def q8_0_or_plain(tensor: Tensor) -> Encoded:
    return plain(tensor) if tensor.shape[1] % 32 else q8_0(tensor)


def test_auto_keeps_4_bits_where_it_would_take_int8() -> None:
    cpu = torch.device("cpu")
    assert automatic_scheme(10**9, cpu, has_four_bits=True) == "checkpoint"
    assert automatic_scheme(10**9, cpu) == "int8"
    assert automatic_scheme(10**8, cpu, has_four_bits=True) == "none"


@pytest.mark.parametrize(
    ("formats", "scheme", "words"),
    [
        ({"BF16": 10}, "int8", ""),
        ({"Q8_0": 10}, "none", "10 matrices in Q8_0 unpacked without rounding"),
        ({"Q8_0": 10}, "int8", "10 matrices in Q8_0 rounded a second time, to 8 bits"),
        ({"Q4_0": 10, "Q6_K": 1}, "int4", "10 matrices in Q4_0 and 1 matrix in Q6_K rounded a second time, to 4 bits"),
        (
            {"Q4_0": 10, "Q6_K": 1},
            "checkpoint",
            "10 matrices in Q4_0 kept as they are, 1 matrix in Q6_K rounded a second time, to 8 bits",
        ),
        ({"AWQ": 10, "F16": 1}, "checkpoint", "10 matrices in AWQ kept as they are, 1 matrix in F16 rounded to 8 bits"),
    ],
)
def test_what_is_rounded_a_second_time_is_said(formats: dict[str, int], scheme: str, words: str) -> None:
    assert rounding(formats, scheme) == words


def test_info_says_what_is_kept(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", make_model(CONFIG), encode)
    code, out, _ = run(capsys, "info", folder)
    assert code == 0
    assert "Rounding:  14 matrices in Q4_0 and 1 matrix in Q8_0 unpacked without rounding" in out
    assert out.splitlines()[-1].startswith("checkpoint ")
    found = json.loads(run(capsys, "info", folder, "--json")[1])
    sizes = {row["quantization"]: row["weights"] for row in found["precisions"]}
    assert sizes["checkpoint"] == weight_bytes(source.load_config(folder), "checkpoint", StoredWeights(folder))
    assert sizes["int4"] < sizes["checkpoint"] < sizes["int8"]
    by_file = json.loads(run(capsys, "info", folder / "model.gguf", "--json")[1])
    assert (by_file["folder"], by_file["files"]) == (found["folder"], found["files"])
