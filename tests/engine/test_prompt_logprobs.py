"""Log probabilities of prompts against transformers, against the reference, and bit for bit in any company."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ternvl.checkpoint.source import load_config
from ternvl.checkpoint.weights import load
from ternvl.config import EngineConfig
from ternvl.engine import score
from ternvl.engine.reference import ReferenceEngine
from ternvl.engine.request import Request
from ternvl.errors import EngineError
from ternvl.fused.exact import prepare
from ternvl.kernels.loader import available
from ternvl.model.internvl import InternVL
from ternvl.params import SamplingParams
from ternvl.quant.conversion import quantize
from ternvl.types import FinishReason, Prompt, PromptLogprobs
from tests.checkpoint import hf
from tests.engine import tiny
from tests.engine.test_failures import faulty_model
from tests.engine.test_kv_cache import CONFIG
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
from tests.lora.tiny import PARTS, pool_of, write

TOLERANCE = 1e-4
NOTHING = SamplingParams(max_tokens=0, prompt_logprobs=2)


@pytest.fixture(scope="module")
def model() -> InternVL:
    return make_model()


def scored(requests: Sequence[Request], rng: random.Random) -> list[Request]:
    """The requests, most of them with log probabilities of their prompts, some without an answer."""
    changed = []
    for request in requests:
        wanted = rng.choice([None, 0, 1, 3])
        params = replace(request.params, prompt_logprobs=wanted, logprobs=0)
        if wanted is not None and rng.random() < 0.3:
            params = replace(params, max_tokens=0, min_tokens=0)
        changed.append(replace(request, params=params))
    return changed


def values(found: PromptLogprobs) -> list[float]:
    """All numbers, those of tokens without any as 1."""
    return [1.0 if each is None else value for each in found for value in _numbers(each)]


def _numbers(each: Any) -> list[float]:
    return [1.0] if each is None else [each.logprob, *(value for _, value in each.top)]


def assert_near(found: PromptLogprobs, wanted: PromptLogprobs) -> None:
    assert values(found) == pytest.approx(values(wanted), abs=TOLERANCE)
    assert [each and each.rank for each in found] == [each and each.rank for each in wanted]


@pytest.mark.parametrize("tiles", [(), (1,), (3, 5)], ids=["text", "image", "images"])
@pytest.mark.parametrize("chunk", [5, 200])
def test_transformers(tiles: tuple[int, ...], chunk: int, tmp_path: Path) -> None:
    sizes = hf.SIZES[1]
    folder = hf.write(sizes, tmp_path, "original")
    prompt = hf.prompt(sizes, tiles)
    engine = make_engine(load(folder, load_config(folder), dtype=torch.float32), max_num_batched_tokens=chunk)
    answer = run(engine, [Request("a", prompt, SamplingParams(max_tokens=1, prompt_logprobs=4))])["a"]
    wanted = hf.logits(hf.build(sizes), prompt).log_softmax(dim=-1)
    images = {position for image in prompt.images for position in range(image.start, image.stop)}
    for position, found in enumerate(answer.prompt_logprobs):
        assert (found is None) == (position == 0 or position in images)
        if found is not None:
            row, token_id = wanted[position - 1], prompt.token_ids[position]
            assert found.logprob == pytest.approx(float(row[token_id]), abs=TOLERANCE)
            assert found.rank == 1 + int((row > row[token_id]).sum())
            assert [each for each, _ in found.top] == row.topk(4).indices.tolist()
            assert [value for _, value in found.top] == pytest.approx(row.topk(4).values.tolist(), abs=TOLERANCE)
    assert len(answer.prompt_logprobs) == prompt.num_tokens
    assert len(answer.token_ids) == 1


@pytest.mark.parametrize(
    ("num_blocks", "options"),
    [(200, {"max_num_batched_tokens": 7, "max_num_batched_tiles": 1}), (24, {"max_num_batched_tokens": 5})],
    ids=["chunks", "little memory"],
)
def test_engine_and_reference_agree(model: InternVL, num_blocks: int, options: dict[str, int]) -> None:
    requests = scored(mixed_requests(3, count=6, max_tokens=8), random.Random(1))
    engine = make_engine(model, num_blocks=num_blocks, **{"max_num_seqs": 5, **options})
    answers = run(engine, requests)
    for request in requests:
        wanted = expected(model, request, engine.config.max_model_len)
        assert_near(answers[request.id].prompt_logprobs, wanted.prompt_logprobs)
        assert (answers[request.id].token_ids, answers[request.id].finish_reason) == (
            wanted.token_ids,
            wanted.finish_reason,
        )
        assert bool(wanted.prompt_logprobs) == (request.params.prompt_logprobs is not None)
    assert engine.stats().num_free_blocks == num_blocks


def test_the_prefix_cache_is_filled_but_not_read(model: InternVL) -> None:
    prompt = image_prompt(random.Random(2), (2,), gap=20)
    asked, plain = Request("a", prompt, NOTHING), Request("b", prompt, SamplingParams(max_tokens=1, temperature=0))
    engine = make_engine(model)
    first = run(engine, [asked])["a"]
    assert run(engine, [plain])["b"].token_ids == expected(model, plain).token_ids
    hits = engine.stats().num_prefix_hit_tokens
    assert hits == (prompt.num_tokens - 1) // 4 * 4
    assert run(engine, [asked])["a"] == first
    assert engine.stats().num_prefix_hit_tokens == hits


def test_a_prompt_that_lost_its_blocks_keeps_its_scores(model: InternVL) -> None:
    """The second one is preempted within its prompt; what it computed until then is not scored again."""
    rng = random.Random(5)
    grows = Request("grows", text_prompt(rng, 8), SamplingParams(max_tokens=60, temperature=0, ignore_eos=True))
    long = Request("long", text_prompt(rng, 60), NOTHING)
    engine = make_engine(model, num_blocks=18, max_num_batched_tokens=4, speculation="off")
    num_scored, again = 0, score.score_rows

    def counted(*args: Any) -> Any:
        nonlocal num_scored
        num_scored += len(args[2])
        return again(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score, "score_rows", counted)
        answers = run(engine, [grows, long])
    assert engine.stats().num_preemptions > 0
    assert num_scored == long.prompt.num_tokens - 1
    assert_near(answers["long"].prompt_logprobs, expected(model, long).prompt_logprobs)
    assert answers["grows"].token_ids == expected(model, grows, 72).token_ids


def test_only_the_first_of_several_answers_has_them(model: InternVL) -> None:
    prompt = text_prompt(random.Random(6), 21)
    params = SamplingParams(prompt_logprobs=0, max_tokens=3, ignore_eos=True, seed=1)
    requests = [Request(f"r{i}", prompt, params, sibling_of="r0" if i else None) for i in range(3)]
    answers = run(make_engine(model, max_num_batched_tokens=8), requests)
    assert [len(answers[each.id].prompt_logprobs) for each in requests] == [21, 0, 0]
    assert [len(answers[each.id].token_ids) for each in requests] == [3, 3, 3]
    slow = ReferenceEngine(model, EngineConfig(max_model_len=200), stop_ids=STOP_IDS)
    for request in requests:
        slow.add(replace(request, params=replace(params, max_tokens=0)))
    outputs = [slow.step()[0] for _ in requests]
    assert [len(each.prompt_logprobs) for each in outputs] == [21, 0, 0]
    assert [each.finish_reason for each in outputs] == [FinishReason.LENGTH] * 3
    assert not slow.has_work


def test_an_answer_of_no_tokens(model: InternVL) -> None:
    rng = random.Random(7)
    whole = Request("whole", text_prompt(rng, 40), NOTHING)
    single = Request("single", text_prompt(rng, 1), replace(NOTHING, logprobs=1, stop_token_ids=tuple(range(60))))
    engine = make_engine(model, max_model_len=40, max_num_batched_tokens=16)
    answers = run(engine, [whole, single, replace(whole, id="sibling", sibling_of="whole")])
    for answer in answers.values():
        assert (answer.token_ids, answer.logprobs, answer.finish_reason) == ([], [], FinishReason.LENGTH)
    assert answers["single"].prompt_logprobs == (None,)
    assert len(answers["whole"].prompt_logprobs) == 40
    assert engine.stats().num_generated_tokens == 0


@pytest.mark.parametrize("speculation", ["ngram", "off"])
def test_the_token_that_stops_an_answer_is_told_apart(model: InternVL, speculation: str) -> None:
    prompt = text_prompt(random.Random(8), 9)
    free = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=1)
    answer = run(make_engine(model), [Request("a", prompt, free)])["a"]
    assert answer.stop is None
    stop = answer.token_ids[5]
    first = answer.token_ids.index(stop)
    request = Request("a", prompt, replace(free, stop_token_ids=(stop,)))
    stopped = run(make_engine(model, speculation=speculation), [request])["a"]
    assert stopped.stop is not None
    assert stopped.stop[0] == stop
    assert stopped.stop[1].logprob == pytest.approx(answer.logprobs[first].logprob, abs=TOLERANCE)
    wanted = expected(model, request)
    assert wanted.stop is not None
    assert wanted.stop[0] == stop
    silent = Request("a", prompt, replace(free, stop_token_ids=(stop,), logprobs=None))
    assert run(make_engine(model), [silent])["a"].stop is None


class Counting(InternVL):
    """Counts the rows of logits."""

    num_rows = 0

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        self.num_rows += len(hidden)
        return super().logits(hidden)


def test_no_logits_are_computed_that_nobody_needs() -> None:
    model = Counting(tiny.CONFIG)
    model.load_state_dict(make_model().state_dict())
    prompt = image_prompt(random.Random(1), (2, 1), gap=6)
    engine = make_engine(model.eval(), enable_prefix_caching=False)
    run(engine, [Request("a", prompt, SamplingParams(max_tokens=1))])
    assert model.num_rows == 1
    model.num_rows = 0
    run(engine, [Request("a", prompt, NOTHING)])
    assert model.num_rows == prompt.num_tokens - prompt.num_image_tokens - 1 + 1


def test_broken_logits_concern_their_own_request_alone() -> None:
    model = faulty_model()
    engine = make_engine(model)
    requests = [Request(f"r{i}", text_prompt(random.Random(i), 5), NOTHING) for i in range(2)]
    requests.append(Request("plain", text_prompt(random.Random(3), 5), SamplingParams(max_tokens=4, temperature=0)))
    for request in reversed(requests):
        engine.add(request)
    original = type(model).logits
    with pytest.MonkeyPatch.context() as patch:

        def broken(self: Any, hidden: torch.Tensor) -> torch.Tensor:
            logits = original(self, hidden)
            if len(hidden) == 4:  # the rows that score a prompt of five tokens
                logits[1] = torch.nan
            return logits

        patch.setattr(type(model), "logits", broken)
        for name in ("r1", "r0"):
            with pytest.raises(EngineError) as caught:
                engine.step()
            assert caught.value.request_ids == (name,)
            engine.check_integrity()
    assert run(engine, [])["plain"] == expected(model, requests[2])
    slow = ReferenceEngine(model, EngineConfig(max_model_len=20), stop_ids=STOP_IDS)
    slow.add(requests[0])
    model.breaks = True
    with pytest.raises(EngineError) as caught:
        slow.step()
    assert caught.value.request_ids == ("r0",)


def invariant_model(scheme: str) -> InternVL:
    """A model whose kernels compute each row by itself."""
    if not available():
        pytest.skip("plain torch is exact to the last bits only")
    made = make_model(CONFIG)
    if scheme == "none":
        prepare(made)
    else:
        quantize(made, scheme, [image_prompt(random.Random(0), [1, 2], gap=40, config=CONFIG)])
    return made


@pytest.mark.parametrize("scheme", ["none", "int8"])
def test_the_same_bits_alone_and_in_company(scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rng = invariant_model(scheme), random.Random(4)
    adapters = [pool_of(CONFIG).read(str(i), write(tmp_path / str(i), CONFIG, i, PARTS[i])) for i in range(2)]
    requests = [
        replace(each, adapter=rng.choice([None, *adapters])) for each in scored(mixed_requests(5, 9, max_tokens=8), rng)
    ]
    requests += [replace(each, id=f"{each.id} again") for each in requests[:3]]
    alone = make_engine(model, enable_prefix_caching=False, image_cache_memory=0, max_num_batched_tokens=400)
    wanted = {each.id: run(alone, [each])[each.id] for each in requests}
    company = make_engine(model, max_num_batched_tokens=11, max_num_seqs=6)
    assert run(company, requests) == wanted
    monkeypatch.setattr(score, "_MAX_LOGITS", 3 * tiny.VOCAB_SIZE)
    assert run(make_engine(model, num_blocks=40, max_num_batched_tokens=50), requests) == wanted
    assert any(each.adapter and each.params.prompt_logprobs is not None for each in requests)


def test_adapters_change_the_scores_as_they_change_the_reference(tmp_path: Path) -> None:
    model = make_model()
    adapter = pool_of(tiny.CONFIG).read("a", write(tmp_path / "a", tiny.CONFIG, 1))
    plain = Request("a", image_prompt(random.Random(3), (1,), gap=9), NOTHING)
    adapted = replace(plain, adapter=adapter)
    found = run(make_engine(model, max_num_batched_tokens=6), [adapted])["a"].prompt_logprobs
    assert_near(found, expected(make_model(), adapted).prompt_logprobs)
    difference = torch.tensor(values(found)) - torch.tensor(values(expected(make_model(), plain).prompt_logprobs))
    assert difference.abs().max() > 0.1


def test_a_prompt_scores_as_the_answer_that_it_holds(model: InternVL) -> None:
    """The log probabilities of an answer are those of the same tokens as part of a prompt."""
    prompt = text_prompt(random.Random(9), 12)
    params = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True, logprobs=2)
    answer = run(make_engine(model), [Request("a", prompt, params)])["a"]
    longer = Prompt((*prompt.token_ids, *answer.token_ids))
    again = run(make_engine(model), [Request("a", longer, NOTHING)])["a"].prompt_logprobs
    assert_near(again[12:], tuple(answer.logprobs))
