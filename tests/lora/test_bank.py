"""Adapters against PEFT's own over transformers, logits and greedy tokens, in every shape of keys; what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from ternvl.checkpoint.source import load_config
from ternvl.checkpoint.weights import load
from ternvl.config import EngineConfig
from ternvl.engine.engine import Engine
from ternvl.engine.reference import generate
from ternvl.errors import AdapterError
from ternvl.fused.exact import prepare
from ternvl.lora.bank import Adapter, attach
from ternvl.lora.files import linears, read
from ternvl.model.internvl import InternVL
from ternvl.types import Prompt, Request, SamplingParams
from tests.checkpoint import hf
from tests.engine.tiny import run
from tests.lora import peft_adapters as adapters

TOLERANCE = 1e-4
PROMPTS = ((), (1,), (3, 5))
NUM_TOKENS = 20
GREEDY = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
CASES = [*((shape, "plain") for shape in adapters.SHAPES), ("hf-new", "patterns"), ("original", "rslora")]


@pytest.fixture(params=["packed", "plain"])
def sizes(request: pytest.FixtureRequest) -> hf.Sizes:
    return hf.SIZES[0 if request.param == "packed" else 1]


@pytest.fixture
def model(sizes: hf.Sizes, tmp_path: Path) -> InternVL:
    folder = hf.write(sizes, tmp_path / "model", "original")
    model = load(folder, load_config(folder), dtype=torch.float32)
    if sizes is hf.SIZES[0]:
        prepare(model)
    return model


def oracle(sizes: hf.Sizes, shape: str, **options: Any) -> PeftModel:
    if shape == "text-only":
        return adapters.make(adapters.text_model(sizes), [*adapters.LANGUAGE, "lm_head"], **options)
    targets = [*adapters.LANGUAGE, *adapters.VISION, *adapters.PROJECTOR, "lm_head"]
    made = adapters.make(hf.build(sizes), targets, **options)
    if shape == "original":
        adapters.tie_thirds(made)
    return made


def read_for(model: InternVL, folder: Path, **options: Any) -> Adapter:
    return read(folder, "own", linears(model.config), **options)


def logits(model: InternVL, prompt: Prompt, adapter: Adapter) -> torch.Tensor:
    bank = attach(model)
    bank.install(adapter)
    with bank.active([(adapter, 0, 1)], 1):
        found = model(prompt)
    bank.release(adapter)
    return found


def greedy(model: InternVL, prompt: Prompt, adapter: Adapter | None) -> list[int]:
    engine = Engine(model, EngineConfig(max_model_len=512, kv_cache_memory=2**22), stop_ids=())
    return run(engine, [Request("r", prompt, GREEDY, adapter=adapter)])["r"].token_ids


@pytest.mark.parametrize(("shape", "variant"), CASES)
def test_logits_and_greedy_tokens_are_pefts(
    sizes: hf.Sizes, model: InternVL, tmp_path: Path, shape: str, variant: str
) -> None:
    theirs = oracle(sizes, shape, **adapters.VARIANTS[variant])
    adapter = read_for(model, adapters.save(theirs, tmp_path / "adapter", shape))
    assert adapter.touches_images == (shape != "text-only")
    for tiles in PROMPTS if adapter.touches_images else [()]:
        prompt = hf.prompt(sizes, tiles)
        expected = (
            theirs(input_ids=torch.tensor([prompt.token_ids])).logits[0].detach()
            if shape == "text-only"
            else hf.logits(theirs, prompt)
        )
        plain = model(prompt)
        ours = logits(model, prompt, adapter)
        assert float((ours - expected).abs().max()) < TOLERANCE
        assert float((plain - expected).abs().max()) > 0.5
        assert torch.equal(model(prompt), plain)
        tokens = greedy(model, prompt, adapter)
        likeliest = _text_greedy if shape == "text-only" else hf.greedy
        assert tokens == likeliest(theirs, prompt, NUM_TOKENS)
        assert tokens != greedy(model, prompt, None)


def _text_greedy(model: PeftModel, prompt: Prompt, count: int) -> list[int]:
    ids = list(prompt.token_ids)
    for _ in range(count):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[prompt.num_tokens :]


def small(tmp_path: Path, targets: list[str] | None = None, shape: str = "hf-new", **options: Any) -> Path:
    made = adapters.make(hf.build(hf.SIZES[0]), targets or ["o_proj", "fc1"], **options)
    return adapters.save(made, tmp_path / "adapter", shape)


def read_small(folder: Path, **options: Any) -> Adapter:
    shapes = linears(load_config(hf.write(hf.SIZES[0], folder.parent / "model", "original")))
    return read(folder, "own", shapes, **options)


def test_peft_over_our_own_modules(tmp_path: Path) -> None:
    """What training here saves: keys of the original layout."""
    folder = hf.write(hf.SIZES[0], tmp_path / "model", "original")
    model = load(folder, load_config(folder), dtype=torch.float32)
    prompt = hf.prompt(hf.SIZES[0], (2,))
    theirs = adapters.make(model, ["q_proj", "down_proj", "qkv", "proj", "fc2", "mlp1.1", "mlp1.3"], rank=3)
    expected = theirs.get_base_model()(prompt)
    theirs.save_pretrained(str(tmp_path / "adapter"))
    adapter = read_for(model, tmp_path / "adapter")
    assert len(adapter.modules) == 2 * 2 + 2 * 3 + 2
    assert (adapter.rank, len(adapter.digest)) == (3, 32)
    assert torch.allclose(logits(model, prompt, adapter), expected, atol=TOLERANCE)


def test_the_reference_path_and_rows_of_others(tmp_path: Path) -> None:
    """Sequences with two adapters and with none, in one batch: each as alone, and as the reference path has it."""
    folder = hf.write(hf.SIZES[0], tmp_path / "model", "original")
    model = load(folder, load_config(folder), dtype=torch.float32)
    prepare(model)
    made = [
        adapters.make(hf.build(hf.SIZES[0]), targets, seed=seed)
        for seed, targets in enumerate([adapters.LANGUAGE, ["linear_1", "q_proj", "down_proj"]])
    ]
    loaded = [
        read_for(model, adapters.save(each, tmp_path / str(number), "hf-new")) for number, each in enumerate(made)
    ]
    prompts = [hf.prompt(hf.SIZES[0], tiles, seed=1) for tiles in ((), (2,))]
    requests = [
        Request(f"{number}-{adapter.name if adapter else None}-{index}", prompt, GREEDY, adapter=adapter)
        for number, prompt in enumerate(prompts)
        for index, adapter in enumerate([*loaded, None])
    ]
    engine = Engine(model, EngineConfig(max_model_len=512, kv_cache_memory=2**22), stop_ids=())
    answers = run(engine, requests)
    assert engine.runner.adapters is not None
    assert engine.runner.adapters.num_installed == 0
    for request in requests:
        reference = generate(model, request.prompt, GREEDY, stop_ids=(), max_model_len=512, adapter=request.adapter)
        expected = [token for output in reference for token in output.token_ids]
        assert answers[request.id].token_ids == expected, request.id
    assert len({tuple(answer.token_ids) for answer in answers.values()}) == len(requests)


def test_bfloat16_files_and_the_wish_for_them(tmp_path: Path) -> None:
    folder = small(tmp_path)
    tensors = load_file(folder / "adapter_model.safetensors")
    exact = read_small(folder)
    rounded = read_small(folder, dtype="bfloat16")
    assert rounded.num_bytes * 2 == exact.num_bytes
    adapters.rewrite(folder, tensors={key: tensor.bfloat16() for key, tensor in tensors.items()})
    stored = read_small(folder)
    assert stored.num_bytes == rounded.num_bytes
    assert stored.digest != exact.digest
    for name, parts in stored.modules.items():
        assert torch.equal(parts[0].delta(), rounded.modules[name][0].delta())


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "dora": ({"use_dora": True}, "use_dora", "unsupported_adapter"),
    "bias": ({"bias": "all"}, "bias", "unsupported_adapter"),
    "lora_bias": ({"lora_bias": True}, "lora_bias", "unsupported_adapter"),
    "modules_to_save": ({"modules_to_save": ["lm_head"]}, "modules_to_save", "unsupported_adapter"),
    "other kinds": ({"peft_type": "IA3"}, "IA3", "unsupported_adapter"),
    "fan_in_fan_out": ({"fan_in_fan_out": True}, "fan_in_fan_out", "unsupported_adapter"),
    "changed base": ({"init_lora_weights": "pissa"}, "pissa", "unsupported_adapter"),
    "what comes later": ({"use_something_new": True}, "use_something_new", "unsupported_adapter"),
    "slow patterns": ({"alpha_pattern": {"(a+)+b": 2}}, "(a+)+b", "unsupported_adapter"),
    "no pattern": ({"rank_pattern": {"(": 2}}, "rank_pattern", "invalid_adapter"),
    "no rank": ({"r": 0}, "rank 0", "invalid_adapter"),
    "another rank": ({"r": 5}, "for [5, ", "base_model_mismatch"),
    "another base": (
        {"base_model_name_or_path": "OpenGVLab/InternVL2_5-1B"}, "InternVL2_5-1B", "base_model_mismatch"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "told", "code"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_by_name(tmp_path: Path, fields: dict[str, Any], told: str, code: str) -> None:
    folder = adapters.rewrite(small(tmp_path), config=fields)
    with pytest.raises(AdapterError) as caught:
        read_small(folder, base="OpenGVLab/InternVL3-1B")
    assert told in str(caught.value)
    assert "own" in str(caught.value)
    assert caught.value.code == code


def test_an_adapter_of_the_same_base_under_another_of_its_names(tmp_path: Path) -> None:
    folder = adapters.rewrite(small(tmp_path), config={"base_model_name_or_path": "OpenGVLab/InternVL3-1B-hf"})
    assert read_small(folder, base="internvl3-1b-instruct").modules


def test_files_that_are_missing_or_broken(tmp_path: Path) -> None:
    folder = small(tmp_path)
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    _refused(folder, "adapter_model.safetensors", "invalid_adapter")
    weights.unlink()
    _refused(folder, "has no adapter_model.safetensors", "adapter_file_missing")
    weights.write_bytes(whole)
    config.write_text("[1")
    _refused(folder, "is not JSON", "invalid_adapter")
    config.unlink()
    _refused(folder, "has no adapter_config.json", "adapter_file_missing")


def test_tensors_that_do_not_fit(tmp_path: Path) -> None:
    folder = small(tmp_path)
    tensors = load_file(folder / "adapter_model.safetensors")
    key = next(key for key in tensors if key.endswith("o_proj.lora_A.weight"))

    def with_tensors(**changes: torch.Tensor | None) -> Path:
        changed = {name: tensor for name, tensor in (tensors | changes).items() if tensor is not None}
        return adapters.rewrite(folder, tensors=changed)

    _refused(with_tensors(**{key: tensors[key][:, :-1].clone()}), key, "base_model_mismatch")
    _refused(with_tensors(**{key: None}), "without its other half", "invalid_adapter")
    broken = tensors[key].clone()
    broken[0, 0] = float("nan")
    _refused(with_tensors(**{key: broken}), "no numbers", "invalid_adapter")
    _refused(with_tensors(**{key: tensors[key].int()}), "int32", "invalid_adapter")
    magnitude = key.replace("lora_A.weight", "lora_magnitude_vector.weight")
    _refused(with_tensors(**{magnitude: torch.ones(3)}), magnitude, "unsupported_adapter")
    foreign = {name.replace("o_proj", "c_proj"): tensor.clone() for name, tensor in tensors.items() if "o_proj" in name}
    _refused(with_tensors(**foreign), "c_proj", "base_model_mismatch")
    stacked = "base_model.model.vision_model.encoder.layers.0.attn.qkv"
    part = "base_model.model.model.vision_tower.encoder.layer.0.attention.q_proj"
    both = {f"{name}.lora_{side}.weight": torch.ones(1) for name in (stacked, part) for side in "AB"}
    _refused(with_tensors(**both), "attn.qkv as a whole and in parts", "invalid_adapter")
    with pytest.raises(AdapterError, match="rank 4") as caught:
        read_small(with_tensors(), max_rank=3)
    assert caught.value.code == "lora_rank_too_large"
    assert read_small(folder, max_rank=4).rank == 4


def _refused(folder: Path, told: str, code: str) -> None:
    with pytest.raises(AdapterError) as caught:
        read_small(folder)
    assert told in str(caught.value)
    assert caught.value.code == code


def test_a_module_that_computes_several_layers_is_told_of_the_bank(tmp_path: Path) -> None:
    """A fused layer takes part under the official names, with slices of its output."""

    class Fused(torch.nn.Module):
        def __init__(self, gate: torch.nn.Linear, up: torch.nn.Linear) -> None:
            super().__init__()
            self.joined = torch.nn.Linear(gate.in_features, 2 * gate.out_features, bias=False)
            self.joined.weight.data = torch.cat([gate.weight, up.weight])

        def attach_lora(self, bank: Any, name: str) -> list[str]:
            self.bank = bank
            self.names = [name.replace("gate_proj", each) for each in ("gate_proj", "up_proj")]
            return self.names

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = self.joined(x)
            for part, each in zip(out.chunk(2, -1), self.names, strict=True):
                if self.bank.touches(each):
                    self.bank.add(each, x, part)
            self.up = out.chunk(2, -1)[1]
            return out.chunk(2, -1)[0]

    class Up(torch.nn.Module):
        def __init__(self, fused: Fused) -> None:
            super().__init__()
            self.fused = [fused]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fused[0].up

    folder = hf.write(hf.SIZES[0], tmp_path / "model", "original")
    plain = load(folder, load_config(folder), dtype=torch.float32)
    fused = copy.deepcopy(plain)
    for layer in fused.language_model.model.layers:
        layer.mlp.gate_proj = Fused(layer.mlp.gate_proj, layer.mlp.up_proj)
        layer.mlp.up_proj = Up(layer.mlp.gate_proj)
    adapter = read_for(plain, small(tmp_path, ["gate_proj", "up_proj", "q_proj"]))
    prompt = hf.prompt(hf.SIZES[0])
    assert torch.allclose(logits(fused, prompt, adapter), logits(plain, prompt, adapter), atol=TOLERANCE)
