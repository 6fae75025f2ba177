"""Speculation changes how many steps an answer takes, and nothing of the answer."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.invariance import requests_of
from ternvl import LLM, SamplingParams
from ternvl.config import EngineConfig
from ternvl.engine.draw import draw
from ternvl.engine.engine import Engine
from ternvl.engine.request import Request
from ternvl.engine.schedule import Chunk, Reuse
from ternvl.engine.sequence import Sequence
from ternvl.errors import ConfigError
from ternvl.kernels.loader import available
from ternvl.model.internvl import InternVL
from ternvl.params import Grammar
from ternvl.sampling.speculation import Draft
from ternvl.types import FinishReason, Prompt
from tests.engine.tiny import Answer, make_engine, make_model, run, text_prompt

GREEDY = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "number_of_objects": {"type": "integer"},
        "color": {"enum": ["red", "green", "blue"]},
    },
    "required": ["name", "number_of_objects", "color"],
    "additionalProperties": False,
}
GRAMMARS = (Grammar.of("json_schema", SCHEMA), Grammar.of("regex", "(ab|ba){2,9}"), Grammar.of("choice", ["yes", "no"]))


@pytest.fixture(scope="module")
def model() -> InternVL:
    return make_model()


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM()


def varied(llm: LLM, count: int, seed: int) -> list[Request]:
    """Mixed requests with all that changes a draw or ends an answer."""
    rng = random.Random(seed)
    stops = llm.tokenizer.encode_text("a e i o u")
    requests = []
    for request in requests_of(llm, count, seed):
        params = replace(
            request.params,
            min_tokens=rng.choice((0, 0, 2)),
            repetition_penalty=rng.choice((1.0, 1.0, 1.2)),
            min_p=rng.choice((0.0, 0.05)),
            logprobs=rng.choice((None, 0, 3)),
            stop_token_ids=tuple(rng.sample(stops, 2)) if rng.random() < 0.2 else (),
            logit_bias={rng.choice(stops): 2.0} if rng.random() < 0.1 else {},
            grammar=rng.choice(GRAMMARS) if rng.random() < 0.25 else None,
        )
        requests.append(replace(request, params=params))
    return requests


def answers_of(llm: LLM, requests: list[Request], seed: int, **options: Any) -> tuple[dict[str, Answer], Engine]:
    """Requests that arrive at random while others run; the books are checked after every step."""
    rng = random.Random(seed)
    config = EngineConfig(**options)
    engine = Engine(llm.engine.model, config, stop_ids=llm.tokenizer.stop_ids)
    answers = {request.id: Answer() for request in requests}
    pending = [
        replace(request, grammar=request.params.grammar and llm.grammars.compile(request.params.grammar))
        for request in requests
    ]
    while pending or engine.has_work:
        while pending and not engine.is_full and (rng.random() < 0.3 or not engine.has_work):
            engine.add(pending.pop(0))
        for output in engine.step():
            answers[output.request_id].take(output)
        engine.check_integrity()
    assert engine.stats().num_free_blocks == engine.stats().num_blocks
    return answers, engine


@pytest.mark.skipif(not available(), reason="plain torch is exact to the last bits only")
def test_no_token_and_no_bit_is_another(llm: LLM) -> None:
    requests = varied(llm, 50, seed=5)
    plain, off = answers_of(llm, requests, 1, speculation="off")
    assert off.stats().num_draft_tokens == 0
    longest = max(request.prompt.num_tokens for request in requests) + 64
    token_bytes = llm.engine.kv_cache_bytes // llm.engine.kv_cache_tokens
    tight = {"max_model_len": longest, "kv_cache_memory": 2 * (longest + 16) * token_bytes, "max_num_seqs": 12}
    for options in ({}, {**tight, "max_num_batched_tokens": 40, "num_speculative_tokens": 39}):
        answers, engine = answers_of(llm, requests, 2, **options)
        assert answers == plain
        stats = engine.stats()
        assert 10 < stats.num_accepted_tokens < stats.num_draft_tokens
        assert (stats.num_preemptions > 0) == bool(options)


def test_steps_are_spared_where_an_answer_repeats(model: InternVL) -> None:
    params = replace(GREEDY, allowed_token_ids=(10,))
    request = Request("a", text_prompt(random.Random(3), 20), params)
    plain, fast = make_engine(model, speculation="off"), make_engine(model)
    assert run(plain, [request]) == run(fast, [request])
    assert plain.stats().num_steps == 60
    stats = fast.stats()
    assert stats.num_steps == 60 - stats.num_accepted_tokens < 20
    assert stats.num_generated_tokens == 60
    assert stats.num_prefill_tokens == plain.stats().num_prefill_tokens


def test_a_full_step_has_no_room_for_drafts(model: InternVL) -> None:
    requests = [Request(f"r{i}", text_prompt(random.Random(i), 20), GREEDY) for i in range(5)]
    engine = make_engine(model, num_speculative_tokens=4)
    run(engine, requests)
    assert engine.stats().num_draft_tokens == 0
    run(engine, requests[:3])
    assert engine.stats().num_accepted_tokens > 0


def test_forced_text_of_a_grammar_takes_few_steps(llm: LLM) -> None:
    prompt = llm.prompt([{"role": "user", "content": "Hello"}])
    params = SamplingParams(temperature=0, max_tokens=60, grammar=GRAMMARS[0])
    (plain, off), (fast, on) = (
        answers_of(llm, [Request("a", prompt, params)], 0, speculation=method) for method in ("off", "ngram")
    )
    assert plain == fast
    assert on.stats().num_steps < off.stats().num_steps - 5


@pytest.mark.parametrize(("end", "reason"), [({"max_tokens": 31}, FinishReason.LENGTH), ({}, FinishReason.STOP)])
def test_an_end_within_a_draft_is_the_end(model: InternVL, end: dict[str, int], reason: FinishReason) -> None:
    prompt = text_prompt(random.Random(3), 20)
    whole = run(make_engine(model), [Request("a", prompt, GREEDY)])["a"].token_ids
    stops = () if end else (whole[45],)
    params = replace(GREEDY, stop_token_ids=stops, **end)
    answer = run(make_engine(model), [Request("a", prompt, params)])["a"]
    count = end.get("max_tokens", whole.index(whole[45]))
    assert (answer.token_ids, answer.finish_reason) == (whole[:count], reason)


def chunk_with_draft(token_ids: tuple[int, ...]) -> Chunk:
    request = Request("a", Prompt((8, 9)), SamplingParams(temperature=0, logprobs=0))
    sequence = Sequence(request, arrival=0, seed=0, stop_ids=frozenset(), max_model_len=50, block_size=4)
    chunk = Chunk(sequence, 1, 1, (0,), (), Reuse(num_tokens=1), samples=True)
    return chunk.with_draft(Draft(token_ids), ())


@pytest.mark.parametrize(
    ("draft", "drawn"), [((1, 2, 3), [1, 2, 3, 4]), ((1, 2, 9), [1, 2, 3]), ((9, 2, 3), [1]), ((), [1])]
)
def test_rows_are_drawn_while_the_draft_holds(draft: tuple[int, ...], drawn: list[int]) -> None:
    chunk = chunk_with_draft(draft)
    logits = torch.eye(12)[torch.arange(1, 2 + len(draft))]
    assert [each.token_id for each in draw([chunk], logits, ())[0]] == drawn


def test_a_broken_row_behind_a_draft_is_left_to_the_next_step() -> None:
    logits = torch.eye(12)[torch.tensor([1, 2, 3])]
    logits[1] = torch.nan
    assert [each.token_id for each in draw([chunk_with_draft((1, 2))], logits, ())[0]] == [1]
    assert [each.token_id for each in draw([chunk_with_draft((7, 2))], logits, ())[0]] == [1]


def test_settings_that_cannot_be(model: InternVL) -> None:
    with pytest.raises(ConfigError, match="speculation is 'eagle', but must be one of auto, ngram, off"):
        make_engine(model, speculation="eagle")
    with pytest.raises(ConfigError, match="num_speculative_tokens is 0, but must be at least 1"):
        make_engine(model, num_speculative_tokens=0)
    assert make_engine(model).config.speculation == "ngram"
