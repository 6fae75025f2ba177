"""The sampler: what it draws, how often, and that other rows do not matter."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from ternvl.errors import RequestError
from ternvl.params import SamplingParams
from ternvl.sampling.sampler import Draw, NonFiniteLogitsError, derive_seed, sample, uniform

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])


def make_draw(position: int = 0, *, seed: int = 0, stop_ids: tuple[int, ...] = (), **params: Any) -> Draw:
    return Draw(SamplingParams(**params), seed, (0, 1), [5] * position, frozenset(stop_ids))


def chi_square(counts: Counter[int], probabilities: list[float]) -> float:
    total = sum(counts.values())
    return sum((counts[i] - total * p) ** 2 / (total * p) for i, p in enumerate(probabilities) if p > 0)


# 99.9 % points of the chi-square distribution by degrees of freedom
BOUND = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47, 5: 20.52}


@pytest.mark.parametrize(
    ("params", "weights"),
    [
        ({}, [math.exp(x) for x in LOGITS.tolist()]),
        ({"temperature": 0.5}, [math.exp(2 * x) for x in LOGITS.tolist()]),
        ({"temperature": 2.0, "top_k": 3}, [math.exp(x / 2) for x in LOGITS.tolist()[:3]] + [0, 0, 0]),
        ({"top_p": 0.75}, [math.exp(x) for x in LOGITS.tolist()[:2]] + [0, 0, 0, 0]),
        ({"min_p": 0.2}, [math.exp(x) for x in LOGITS.tolist()[:3]] + [0, 0, 0]),
        ({"logit_bias": {1: 1.5, 4: -0.5}}, [math.exp(x) for x in (2.0, 2.5, 0.5, 0.0, -1.5, -3.0)]),
        ({"logit_bias": {5: 5}, "temperature": 2.0, "top_k": 2}, [math.exp(1), 0, 0, 0, 0, math.exp(1)]),
        ({"logit_bias": {0: -100}}, [0, *(math.exp(x) for x in LOGITS.tolist()[1:])]),
        ({"allowed_token_ids": (1, 3, 5)}, [0, math.exp(1), 0, math.exp(0), 0, math.exp(-3)]),
        ({"allowed_token_ids": (1, 3), "logit_bias": {3: 1, 0: 100}}, [0, math.exp(1), 0, math.exp(1), 0, 0]),
        ({"top_k": 4, "top_p": 0.9}, [math.exp(x) for x in LOGITS.tolist()[:3]] + [0, 0, 0]),
    ],
)
@pytest.mark.parametrize("by", ["position", "seed"])
def test_distribution(params: dict[str, Any], weights: list[float], by: str) -> None:
    count = 4000
    wanted = SamplingParams(**params)
    places = [(0, i) if by == "position" else (i, 0) for i in range(count)]
    draws = [Draw(wanted, seed, (), [5] * position, frozenset()) for seed, position in places]
    counts = Counter(each.token_id for each in sample(LOGITS.repeat(count, 1), draws))
    probabilities = [weight / sum(weights) for weight in weights]
    assert all(probabilities[token_id] > 0 for token_id in counts)
    assert chi_square(counts, probabilities) < BOUND[sum(p > 0 for p in probabilities) - 1]


def test_penalties_shape_the_distribution() -> None:
    count = 4000
    params = SamplingParams(presence_penalty=0.5, frequency_penalty=0.25, repetition_penalty=1.25)
    draws = [Draw(params, seed, (0, 4), [1, 3, 1], frozenset()) for seed in range(count)]
    counts = Counter(each.token_id for each in sample(LOGITS.repeat(count, 1), draws))
    penalised = [2.0 / 1.25, 1.0 / 1.25 - 0.5 - 0.5, 0.5, 0.0 - 0.5 - 0.25, -1.0 * 1.25, -3.0]
    weights = [math.exp(value) for value in penalised]
    assert chi_square(counts, [weight / sum(weights) for weight in weights]) < BOUND[5]


def test_penalties_come_after_the_bias() -> None:
    count = 4000
    params = SamplingParams(repetition_penalty=1.25, presence_penalty=0.5, logit_bias={0: -3, 4: 2})  # type: ignore[arg-type]
    draws = [Draw(params, seed, (0, 4), [1], frozenset()) for seed in range(count)]
    counts = Counter(each.token_id for each in sample(LOGITS.repeat(count, 1), draws))
    penalised = [(2.0 - 3) * 1.25, 1.0 / 1.25 - 0.5, 0.5, 0.0, (-1.0 + 2) / 1.25, -3.0]
    weights = [math.exp(value) for value in penalised]
    assert chi_square(counts, [weight / sum(weights) for weight in weights]) < BOUND[5]


def test_draws_do_not_depend_on_other_rows() -> None:
    rng = random.Random(0)
    torch.manual_seed(0)
    logits = torch.randn(12, 400) * 3
    draws = [
        make_draw(
            rng.randrange(5),
            seed=rng.randrange(100),
            temperature=rng.choice([0.0, 0.3, 1.0, 2.0]),
            top_p=rng.choice([0.0, 0.5, 0.95, 1.0]),
            top_k=rng.choice([-1, 0, 1, 40, 4000]),
            min_p=rng.choice([0.0, 0.1]),
            presence_penalty=rng.choice([0.0, 1.0]),
            frequency_penalty=rng.choice([0.0, -1.0]),
            logprobs=rng.choice([None, 0, 4]),
            logit_bias=rng.choice([(), ((3, 100.0), (7, -4.5))]),
            allowed_token_ids=rng.choice([(), (3, 9, 200)]),
        )
        for _ in range(12)
    ]
    together = sample(logits, draws)
    alone = [sample(logits[row : row + 1], [draw])[0] for row, draw in enumerate(draws)]
    reverse = sample(logits.flip(0), draws[::-1])[::-1]
    assert together == alone == reverse


def test_the_global_generator_is_neither_read_nor_advanced() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = sample(LOGITS[None], [make_draw(seed=9)])
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert sample(LOGITS[None], [make_draw(seed=9)]) == first


@pytest.mark.parametrize(
    "params", [{"temperature": 0}, {"top_p": 0}, {"top_k": 1}, {"temperature": 1e-9}, {"min_p": 1}]
)
def test_greedy_in_five_ways(params: dict[str, Any]) -> None:
    draws = [make_draw(seed=seed, **params) for seed in range(200)]
    assert {each.token_id for each in sample(LOGITS.repeat(200, 1), draws)} == {0}


def test_greedy_takes_the_lowest_of_equal_tokens() -> None:
    assert sample(torch.tensor([[0.0, 4.0, 4.0]]), [make_draw(temperature=0)])[0].token_id == 1


def test_logprobs_are_after_penalties_and_before_temperature() -> None:
    params: dict[str, Any] = {"temperature": 0.1, "top_k": 1, "presence_penalty": 2.0, "logprobs": 2}
    drawn = sample(LOGITS[None], [Draw(SamplingParams(**params), 0, (), [0], frozenset())])[0]
    want = torch.tensor([0.0, 1.0, 0.5, 0.0, -1.0, -3.0]).log_softmax(-1)
    assert drawn.token_id == 1
    assert drawn.logprobs is not None
    assert drawn.logprobs.logprob == pytest.approx(float(want[1]))
    assert [token_id for token_id, _ in drawn.logprobs.top] == [1, 2]
    assert [value for _, value in drawn.logprobs.top] == pytest.approx([float(want[1]), float(want[2])])


def test_no_logprobs_unless_asked_and_none_best_for_0() -> None:
    without, zero = sample(LOGITS.repeat(2, 1), [make_draw(), make_draw(logprobs=0)])
    assert without.logprobs is None
    assert zero.logprobs is not None
    assert zero.logprobs.top == ()


def test_min_tokens_bans_stop_tokens_until_there_are_enough() -> None:
    draws = [make_draw(position, temperature=0, min_tokens=2, stop_ids=(0, 1, 5000)) for position in range(4)]
    assert [each.token_id for each in sample(LOGITS.repeat(4, 1), draws)] == [2, 2, 0, 0]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_rows_of_non_finite_logits_are_named(value: float) -> None:
    logits = LOGITS.repeat(3, 1)
    logits[1, 2] = value
    with pytest.raises(NonFiniteLogitsError) as caught:
        sample(logits, [make_draw()] * 3)
    assert caught.value.rows == [1]


def test_uniform_is_uniform_and_inside() -> None:
    values = [uniform(seed, position) for seed in (-1, 0, 2**70) for position in range(2000)]
    counts = Counter(int(value * 6) for value in values)
    assert all(0 < value < 1 for value in values)
    assert len(set(values)) == len(values)
    assert chi_square(counts, [1 / 6] * 6) < BOUND[5]
    assert len({derive_seed(base, number) for base in range(30) for number in range(30)}) == 900


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1), ("temperature", 2.1), ("temperature", math.nan), ("temperature", "1"),
        ("temperature", True),
        ("top_p", -0.01), ("top_p", 1.01), ("top_k", -2), ("top_k", 1.5), ("min_p", 1.1),
        ("presence_penalty", 2.01), ("presence_penalty", -2.01), ("frequency_penalty", 3), ("frequency_penalty", -3),
        ("repetition_penalty", 0), ("repetition_penalty", -1), ("seed", 1.5), ("n", 0), ("n", None),
        ("max_tokens", 0), ("min_tokens", -1), ("logprobs", -1), ("logprobs", 21),
        ("stop", ("",)), ("stop", ("a",) * 17), ("stop_token_ids", (-1,)),
        ("logit_bias", {1: 101}), ("logit_bias", {-1: 1}), ("logit_bias", {1: "1"}), ("allowed_token_ids", (1.5,)),
        ("skip_special_tokens", 0), ("include_stop_str_in_output", None),
        ("stop", 3), ("stop_token_ids", 3), ("stop_token_ids", (True,)), ("ignore_eos", 1),
    ],
)  # fmt: skip
def test_params_out_of_range(field: str, value: object) -> None:
    with pytest.raises(RequestError, match=field) as caught:
        SamplingParams(**{field: value})  # type: ignore[arg-type]
    assert caught.value.param == field
    assert repr(value).strip("{}") in str(caught.value)


def test_params_at_their_bounds() -> None:
    low = SamplingParams(temperature=0, top_p=0, top_k=-1, presence_penalty=-2, frequency_penalty=-2, min_p=0)
    high = SamplingParams(
        temperature=2, top_p=1, presence_penalty=2, frequency_penalty=2, min_p=1, logprobs=20, seed=-5
    )
    assert (low.temperature, high.temperature) == (0, 2)
    with pytest.raises(RequestError, match="min_tokens is 5, but max_tokens is 4"):
        SamplingParams(min_tokens=5, max_tokens=4)


def test_params_take_numpy_numbers_lists_and_one_stop_string() -> None:
    given = SamplingParams(
        temperature=np.float32(0.5),  # type: ignore[arg-type]
        seed=np.int64(3),  # type: ignore[arg-type]
        n=np.int32(2),  # type: ignore[arg-type]
        stop="END",  # type: ignore[arg-type]
        stop_token_ids=[np.int64(7)],  # type: ignore[arg-type, list-item]
    )
    assert given == SamplingParams(temperature=0.5, seed=3, n=2, stop=("END",), stop_token_ids=(7,))
    assert hash(given) is not None
    assert type(given.seed) is int
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")  # type: ignore[arg-type]
    assert SamplingParams(stop=None).stop == ()  # type: ignore[arg-type]
