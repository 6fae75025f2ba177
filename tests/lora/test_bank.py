"""Logits and greedy tokens with adapters, compared with PEFT over transformers, for keys in every layout."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from ternvl.checkpoint.source import load_config
from ternvl.checkpoint.weights import load
from ternvl.config import EngineConfig
from ternvl.engine.engine import Engine
from ternvl.engine.reference import generate
from ternvl.engine.request import Request
from ternvl.fused.exact import prepare
from ternvl.lora.adapter import Adapter
from ternvl.lora.bank import attach
from ternvl.lora.files import linears, read
from ternvl.model.internvl import InternVL
from ternvl.params import SamplingParams
from ternvl.types import Prompt
from tests.checkpoint import hf
from tests.engine.tiny import run
from tests.lora import peft_adapters
from tests.lora.peft_adapters import small

TOLERANCE = 1e-4
PROMPTS = ((), (1,), (3, 5))
NUM_TOKENS = 20
GREEDY = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
CASES = [*((shape, "plain") for shape in peft_adapters.SHAPES), ("hf-new", "patterns"), ("original", "rslora")]


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
        return peft_adapters.make(peft_adapters.text_model(sizes), [*peft_adapters.LANGUAGE, "lm_head"], **options)
    targets = [*peft_adapters.LANGUAGE, *peft_adapters.VISION, *peft_adapters.PROJECTOR, "lm_head"]
    made = peft_adapters.make(hf.build(sizes), targets, **options)
    if shape == "original":
        peft_adapters.tie_thirds(made)
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
    theirs = oracle(sizes, shape, **peft_adapters.VARIANTS[variant])
    adapter = read_for(model, peft_adapters.save(theirs, tmp_path / "adapter", shape))
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


def test_peft_over_our_own_modules(tmp_path: Path) -> None:
    """Keys of the original layout, as training in this project saves them."""
    folder = hf.write(hf.SIZES[0], tmp_path / "model", "original")
    model = load(folder, load_config(folder), dtype=torch.float32)
    prompt = hf.prompt(hf.SIZES[0], (2,))
    theirs = peft_adapters.make(model, ["q_proj", "down_proj", "qkv", "proj", "fc2", "mlp1.1", "mlp1.3"], rank=3)
    expected = theirs.get_base_model()(prompt)
    theirs.save_pretrained(str(tmp_path / "adapter"))
    adapter = read_for(model, tmp_path / "adapter")
    assert len(adapter.modules) == 2 * 2 + 2 * 3 + 2
    assert (adapter.rank, len(adapter.digest)) == (3, 32)
    assert torch.allclose(logits(model, prompt, adapter), expected, atol=TOLERANCE)


def test_a_mixed_batch_has_the_tokens_of_the_reference_path(tmp_path: Path) -> None:
    """In a batch with two adapters and none, each sequence has the tokens of the reference path."""
    folder = hf.write(hf.SIZES[0], tmp_path / "model", "original")
    model = load(folder, load_config(folder), dtype=torch.float32)
    prepare(model)
    made = [
        peft_adapters.make(hf.build(hf.SIZES[0]), targets, seed=seed)
        for seed, targets in enumerate([peft_adapters.LANGUAGE, ["linear_1", "q_proj", "down_proj"]])
    ]
    loaded = [
        read_for(model, peft_adapters.save(each, tmp_path / str(number), "hf-new")) for number, each in enumerate(made)
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
        reference = generate(model, request, stop_ids=(), max_model_len=512)
        expected = [token for output in reference for token in output.token_ids]
        assert answers[request.id].token_ids == expected, request.id
    assert len({tuple(answer.token_ids) for answer in answers.values()}) == len(requests)


def test_a_module_that_computes_several_layers_adds_for_each_of_them(tmp_path: Path) -> None:
    """A fused layer adds to slices of its output under the official names."""

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
