"""Agreement of two models along answers: exact where they are the same, and the divergence against its formula."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from ternvl.errors import ConfigError
from ternvl.llm import LLM
from ternvl.model.internvl import InternVL
from ternvl.params import SamplingParams
from ternvl.quant.agreement import Agreement, compare, measure
from ternvl.types import Prompt
from tests.fakes import tiny_tokenizer
from tests.server.fakes import tiny_model


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM.from_parts(tiny_model(), tiny_tokenizer(), max_model_len=256)


@pytest.fixture
def other() -> InternVL:
    """The model with another head."""
    model = deepcopy(tiny_model())
    head = model.language_model.lm_head
    torch.manual_seed(3)
    head.weight = torch.nn.Parameter(head.weight + 0.02 * torch.randn_like(head.weight), requires_grad=False)
    return model


def test_a_model_agrees_with_itself(llm: LLM) -> None:
    prompts = [llm.prompt([{"role": "user", "content": text}]) for text in ("hi", "a b c")]
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=5))
    answered = [(output.prompt, output.token_ids) for output in outputs]
    seen: list[tuple[int, int]] = []
    found = measure(llm.engine.model, llm.engine.model, answered, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
    assert [each.positions for each in found] == [len(token_ids) + 1 for _, token_ids in answered]
    total = found[0] + found[1]
    assert total.same == total.positions == sum(each.positions for each in found)
    assert (total.top1, total.kl_mean, total.kl_max) == (1, 0, 0)


def test_the_figures_are_those_of_the_logits(llm: LLM, other: InternVL) -> None:
    prompt, answer = llm.prompt([{"role": "user", "content": "hi"}]), tuple(range(20, 110))
    whole = replace(prompt, token_ids=prompt.token_ids + answer)
    p, q = (model(whole)[prompt.num_tokens - 1 :].double().log_softmax(dim=1) for model in (llm.engine.model, other))
    kl = (p.exp() * (p - q)).sum(dim=1)
    found = compare(llm.engine.model, other, prompt, answer)
    assert found.positions == 91
    assert found.same == int((p.argmax(dim=1) == q.argmax(dim=1)).sum()) < 91
    assert found.kl_mean == pytest.approx(float(kl.mean()), rel=1e-6)
    assert found.kl_max == pytest.approx(float(kl.max()), rel=1e-6)


def test_logits_that_are_no_numbers(llm: LLM, other: InternVL) -> None:
    other.language_model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(ConfigError, match="no numbers"):
        compare(llm.engine.model, other, Prompt((1, 2, 3)), (4,))


def test_nothing_agrees_with_nothing() -> None:
    assert (Agreement().top1, Agreement().kl_mean) == (1, 0)
