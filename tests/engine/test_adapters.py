"""Adapters in the engine and offline: an answer does not depend on what else is in the batch or was loaded before."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ternvl.engine.request import Request
from ternvl.errors import ConfigError, UnknownAdapterError
from ternvl.fused.exact import prepare
from ternvl.kernels.loader import available
from ternvl.llm import LLM
from ternvl.lora.bank import LoRALinear
from ternvl.model.internvl import InternVL
from ternvl.params import SamplingParams
from tests.engine import tiny
from tests.engine.tiny import expected, make_engine, make_model, mixed_requests, run
from tests.fakes import tiny_tokenizer
from tests.lora.tiny import PARTS, pool_of, write
from tests.server.fakes import tiny_config

GREEDY = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("adapters")
    return [write(root / f"a{seed}", tiny.CONFIG, seed, parts) for seed, parts in enumerate(PARTS)]


@pytest.fixture(scope="module")
def adapted(folders: list[Path]) -> list[Request]:
    """Mixed requests, each with one of five adapters or none."""
    rng, pool = random.Random(4), pool_of(tiny.CONFIG)
    adapters = [pool.read(folder.name, folder) for folder in folders]
    return [replace(each, adapter=rng.choice([*adapters, None])) for each in mixed_requests(5, 40)]


def packed_model() -> InternVL:
    if not available():
        pytest.skip("there is no compiler")
    model = make_model()
    prepare(model)
    return model


@pytest.mark.parametrize("options", [{}, {"max_num_batched_tokens": 13}, {"num_blocks": 60, "max_model_len": 150}])
def test_a_mixed_batch_is_each_alone(adapted: list[Request], options: dict[str, int]) -> None:
    model = packed_model()
    requests = [replace(each, params=replace(each.params, logprobs=0)) for each in adapted]
    alone = make_engine(model, enable_prefix_caching=False, image_cache_memory=0)
    single = {each.id: run(alone, [each])[each.id] for each in requests}
    engine = make_engine(model, **options)
    together = run(engine, requests)
    assert {name: answer.token_ids for name, answer in together.items()} == {
        name: answer.token_ids for name, answer in single.items()
    }
    assert {name: answer.logprobs for name, answer in together.items()} == {
        name: answer.logprobs for name, answer in single.items()
    }
    assert engine.runner.adapters is not None
    assert engine.runner.adapters.num_installed == 0
    assert not [module for module in model.modules() if isinstance(module, LoRALinear)]


def test_greedy_answers_are_the_references(adapted: list[Request]) -> None:
    model, other = packed_model(), packed_model()
    requests = [replace(each, params=GREEDY) for each in adapted[:12]]
    answers = run(make_engine(model), requests)
    changed = 0
    for request in requests:
        reference = tiny.Answer()
        for output in tiny.generate(other, request, stop_ids=tiny.STOP_IDS, max_model_len=512):
            reference.take(output)
        assert answers[request.id].token_ids == reference.token_ids
        plain = expected(other, replace(request, adapter=None))
        changed += request.adapter is not None and plain.token_ids != reference.token_ids
    assert changed > 3


def make_llm(**options: object) -> LLM:
    torch.manual_seed(3)
    return LLM.from_parts(InternVL(tiny_config()), tiny_tokenizer(), max_model_len=256, **options)  # type: ignore[arg-type]


def test_offline_one_adapter_for_all_or_one_a_prompt(tmp_path: Path) -> None:
    llm, reference = make_llm(max_loras=2), make_llm(reference=True)
    names = ["a", "b", "c"]
    for each in (llm, reference):
        for seed, name in enumerate(names):
            each.load_adapter(name, write(tmp_path / name, llm.config, seed + 2))
    talk = [{"role": "user", "content": "Hello"}]
    prompts = [llm.prompt(talk)] * 4
    outputs = llm.generate(prompts, GREEDY, adapter=["a", None, "c", "b"])  # one more than fits into memory
    texts = [output.text for output in outputs]
    assert len(set(texts)) == 4
    assert [output.text for output in reference.generate(prompts, GREEDY, adapter=["a", None, "c", "b"])] == texts
    assert llm.chat(talk, replace(GREEDY, n=2), adapter="c")[0].text == texts[2]
    assert llm.generate(prompts[0], GREEDY)[0].text == texts[1]
    assert llm.adapters.num_resident == 2
    with pytest.raises(UnknownAdapterError, match="'d' is not loaded; loaded: a, b, c"):
        llm.generate(prompts[0], GREEDY, adapter="d")
    with pytest.raises(ConfigError, match="2 adapters for 4 prompts"):
        llm.generate(prompts, GREEDY, adapter=["a", "b"])
    llm.unload_adapter("a")
    with pytest.raises(UnknownAdapterError):
        llm.generate(prompts[0], GREEDY, adapter="a")
    with pytest.raises(UnknownAdapterError):
        llm.unload_adapter("a")


def test_a_new_adapter_under_an_old_name_does_not_use_cached_values_of_the_old(tmp_path: Path) -> None:
    llm, fresh = make_llm(), make_llm()
    prompt = llm.prompt([{"role": "user", "content": "Hello, hello, hello, and hello once more"}])
    answers = []
    for seed in (2, 3):
        llm.load_adapter("a", write(tmp_path / str(seed), llm.config, seed))
        answers.append(llm.generate(prompt, GREEDY, adapter="a")[0].text)
    fresh.load_adapter("other", tmp_path / "3")
    assert fresh.generate(prompt, GREEDY, adapter="other")[0].text == answers[1] != answers[0]
