"""The engine against the reference, token for token, whatever the company, the chunks and the memory."""

from __future__ import annotations

import random

import pytest
import torch

from ternvl.config import EngineConfig
from ternvl.engine.engine import Engine
from ternvl.engine.reference import ReferenceEngine
from ternvl.engine.request import Request
from ternvl.errors import ContextLengthError
from ternvl.model.internvl import InternVL
from ternvl.params import SamplingParams
from ternvl.types import FinishReason, Prompt
from tests.engine.tiny import (
    STOP_IDS,
    expected,
    image_prompt,
    make_engine,
    make_model,
    mixed_requests,
    run,
    text_prompt,
)

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def model() -> InternVL:
    return make_model()


@pytest.mark.parametrize("number", range(8))
def test_alone_equals_reference(model: InternVL, number: int) -> None:
    request = mixed_requests(seed=1, count=8)[number]
    assert run(make_engine(model), [request])[request.id] == expected(model, request)


@pytest.mark.parametrize(
    ("num_blocks", "options"),
    [
        (200, {}),
        (200, {"max_num_batched_tokens": 7, "max_num_batched_tiles": 1}),
        (200, {"max_num_batched_tokens": 4, "max_num_seqs": 3}),
        (34, {"max_num_batched_tokens": 32}),
        (24, {"max_num_batched_tokens": 5, "max_num_batched_tiles": 2, "max_num_seqs": 5}),
    ],
)
@pytest.mark.parametrize("seed", [2, 3])
def test_company_equals_reference(model: InternVL, seed: int, num_blocks: int, options: dict[str, int]) -> None:
    requests = mixed_requests(seed, count=9)
    engine = make_engine(model, num_blocks=num_blocks, **options)
    answers = run(engine, requests)
    limit = engine.config.max_model_len
    assert answers == {request.id: expected(model, request, limit) for request in requests}
    assert engine.stats().num_free_blocks == num_blocks


def test_tiny_memory_preempts_and_loses_nothing(model: InternVL) -> None:
    rng = random.Random(0)
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    requests = [Request(f"r{i}", text_prompt(rng, 8 + i), params) for i in range(6)]
    requests.append(Request("image", image_prompt(rng, (2,)), params))
    engine = make_engine(model, num_blocks=20)
    answers = run(engine, requests)
    assert engine.stats().num_preemptions > 3
    assert all(len(answers[request.id].token_ids) == 40 for request in requests)
    assert answers == {request.id: expected(model, request) for request in requests}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_the_reference(dtype: torch.dtype) -> None:
    model = make_model().to(dtype)
    prompt = image_prompt(random.Random(4), (2, 1))
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=5)
    request = Request("a", prompt, params)
    got = run(make_engine(model, max_num_batched_tokens=9), [request])["a"].logprobs[0]
    more = SamplingParams(temperature=0, max_tokens=1, logprobs=20)
    want = dict(expected(model, Request("a", prompt, more)).logprobs[0].top)
    assert all(value == pytest.approx(want[token_id], abs=0.25) for token_id, value in got.top)


def test_streams_go_on_while_tiles_are_encoded(model: InternVL) -> None:
    rng = random.Random(5)
    engine = make_engine(model, max_num_batched_tiles=1)
    engine.add(Request("stream", text_prompt(rng, 4), GREEDY))
    engine.step()
    engine.add(Request("image", image_prompt(rng, (3, 2)), GREEDY))
    seen = [{output.request_id for output in engine.step()} for _ in range(6)]
    assert all("stream" in ids for ids in seen)
    assert [("image" in ids) for ids in seen] == [False, False, False, False, True, True]


def test_long_prompt_does_not_hold_up_a_stream(model: InternVL) -> None:
    rng = random.Random(6)
    engine = make_engine(model, max_num_batched_tokens=8)
    engine.add(Request("stream", text_prompt(rng, 2), GREEDY))
    engine.step()
    engine.add(Request("long", text_prompt(rng, 60), GREEDY, priority=-1))
    seen = [{output.request_id for output in engine.step()} for _ in range(9)]
    assert all("stream" in ids for ids in seen)
    assert [("long" in ids) for ids in seen] == [False] * 8 + [True]


def test_stop_token_ends_and_is_not_shown(model: InternVL) -> None:
    request = Request("a", text_prompt(random.Random(7), 9), GREEDY)
    tokens = expected(model, request).token_ids
    stop = tokens[5]
    first = tokens.index(stop)
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, stop_token_ids=(stop,), logprobs=0)
    answer = run(make_engine(model), [Request("a", request.prompt, params)])["a"]
    assert (answer.token_ids, answer.finish_reason) == (tokens[:first], FinishReason.STOP)
    assert len(answer.logprobs) == first


def test_model_stop_ids_unless_ignored(model: InternVL) -> None:
    prompt = text_prompt(random.Random(8), 9)
    tokens = expected(model, Request("a", prompt, GREEDY)).token_ids
    engine = Engine(model, make_engine(model).config, stop_ids=(tokens[3],))
    stops = run(engine, [Request("a", prompt, SamplingParams(temperature=0, max_tokens=12))])["a"]
    ignores = run(engine, [Request("a", prompt, GREEDY)])["a"]
    assert (stops.token_ids, stops.finish_reason) == (tokens[: tokens.index(tokens[3])], FinishReason.STOP)
    assert (ignores.token_ids, ignores.finish_reason) == (tokens, FinishReason.LENGTH)


def test_min_tokens_keeps_stop_tokens_away(model: InternVL) -> None:
    prompt = text_prompt(random.Random(9), 9)
    first = expected(model, Request("a", prompt, GREEDY)).token_ids[0]
    params = SamplingParams(temperature=0, max_tokens=12, min_tokens=4, stop_token_ids=(first,))
    answer = run(make_engine(model), [Request("a", prompt, params)])["a"]
    assert len(answer.token_ids) >= 4
    assert first not in answer.token_ids[:4]


@pytest.mark.parametrize(("num_blocks", "limit"), [(200, 30), (6, 24), (7, 25)])
def test_context_end_is_length(model: InternVL, num_blocks: int, limit: int) -> None:
    engine = make_engine(model, num_blocks=num_blocks, max_model_len=limit)
    params = SamplingParams(temperature=0, ignore_eos=True)
    answer = run(engine, [Request("a", text_prompt(random.Random(1), 10), params)])["a"]
    assert (len(answer.token_ids), answer.finish_reason) == (limit - 10, FinishReason.LENGTH)
    last = run(engine, [Request("b", text_prompt(random.Random(1), limit - 1), params)])["b"]
    assert (len(last.token_ids), last.finish_reason) == (1, FinishReason.LENGTH)
    full = run(engine, [Request("c", text_prompt(random.Random(1), limit), params)])["c"]
    assert (len(full.token_ids), full.finish_reason) == (1, FinishReason.LENGTH)
    with pytest.raises(ContextLengthError, match=f"length is {limit} tokens.* it has {limit + 1} tokens"):
        engine.add(Request("d", text_prompt(random.Random(1), limit + 1), params))
    assert not engine.has_work


@pytest.mark.parametrize("seed", range(4))
def test_fuzz(model: InternVL, seed: int) -> None:
    """Requests come and go at random; the books are right after each step and those that stay are not touched."""
    rng = random.Random(seed)
    engine = make_engine(
        model,
        num_blocks=rng.randrange(22, 40),
        max_num_seqs=rng.randrange(2, 6),
        max_num_batched_tokens=rng.randrange(6, 40),
        max_num_batched_tiles=rng.randrange(1, 4),
        max_queue=8,
    )
    pending = mixed_requests(seed, count=25, max_tokens=16)
    requests = {request.id: request for request in pending}
    alive: dict[str, list[int]] = {}
    finished: dict[str, list[int]] = {}
    while pending or engine.has_work:
        while pending and rng.random() < 0.4 and not engine.is_full:
            request = pending.pop()
            engine.add(request)
            alive[request.id] = []
        if alive and rng.random() < 0.05:
            victim = rng.choice(sorted(alive))
            engine.abort(victim)
            del alive[victim]
        for output in engine.step():
            alive[output.request_id] += output.token_ids
            if output.finish_reason:
                finished[output.request_id] = alive.pop(output.request_id)
        engine.check_integrity()
    assert engine.stats().num_free_blocks == engine.stats().num_blocks
    assert len(finished) > 8
    limit = engine.config.max_model_len
    assert finished == {each: expected(model, requests[each], limit).token_ids for each in finished}


def test_requests_without_seed_differ_and_repeat_with_the_engine(model: InternVL) -> None:
    prompt = text_prompt(random.Random(3), 5)
    params = SamplingParams(temperature=1.5, max_tokens=12, ignore_eos=True)
    requests = [Request(f"r{i}", prompt, params) for i in range(4)]
    first, again = (run(make_engine(model), requests) for _ in range(2))
    other = run(make_engine(model, seed=1), requests)
    assert first == again
    assert len({tuple(answer.token_ids) for answer in [*first.values(), *other.values()]}) == 8


def test_biased_and_restricted_draws_are_the_references(model: InternVL) -> None:
    params = SamplingParams(seed=3, max_tokens=8, logit_bias=((40, 3.0), (41, 4.0)), allowed_token_ids=(40, 41, 42))
    request = Request("a", text_prompt(random.Random(3), 5), params)
    answer = run(make_engine(model), [request])["a"]
    assert answer == expected(model, request)
    assert set(answer.token_ids) <= {40, 41, 42}


def test_logprobs_are_the_models(model: InternVL) -> None:
    prompt = image_prompt(random.Random(2), (1, 2))
    params = SamplingParams(temperature=1.3, top_k=3, seed=5, max_tokens=4, ignore_eos=True, logprobs=3)
    answer = run(make_engine(model, max_num_batched_tokens=6), [Request("a", prompt, params)])["a"]
    for position, (token_id, logprobs) in enumerate(zip(answer.token_ids, answer.logprobs, strict=True)):
        whole = Prompt(prompt.token_ids + tuple(answer.token_ids[:position]), prompt.images, prompt.pixel_values)
        want = model.forward(whole)[-1].log_softmax(-1)
        assert logprobs.logprob == pytest.approx(float(want[token_id]), abs=1e-4)
        assert [pair[0] for pair in logprobs.top] == want.topk(3).indices.tolist()
        assert [pair[1] for pair in logprobs.top] == pytest.approx(want.topk(3).values.tolist(), abs=1e-4)


def test_reference_engine_has_the_engines_answers(model: InternVL) -> None:
    requests = mixed_requests(seed=12, count=5, max_tokens=8)
    slow = ReferenceEngine(model, EngineConfig(max_model_len=200, max_queue=8), stop_ids=STOP_IDS)
    answers: dict[str, list[int]] = {request.id: [] for request in requests}
    for request in requests:
        slow.add(request)
    while slow.has_work:
        for output in slow.step():
            answers[output.request_id] += output.token_ids
    assert answers == {each: answer.token_ids for each, answer in run(make_engine(model), requests).items()}
    assert slow.stats().num_generated_tokens == sum(map(len, answers.values()))
