"""Processors against their definitions, worked out by hand or in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ternvl.sampling import processors


def kept(logits: Tensor) -> list[list[int]]:
    return [row.isfinite().nonzero().flatten().tolist() for row in logits]


PROBABILITIES = torch.tensor([[0.1, 0.4, 0.05, 0.3, 0.15]])
ALL = [0, 1, 2, 3, 4]


def test_repetition_penalty() -> None:
    logits = torch.tensor([[2.0, -2.0, 3.0, 0.0]])
    seen = torch.tensor([[True, True, False, True]])
    out = processors.apply_repetition_penalty(logits, torch.tensor([2.0]), seen)
    assert out.tolist() == [[1.0, -4.0, 3.0, 0.0]]


def test_presence_and_frequency_penalty() -> None:
    logits, counts = torch.ones(2, 3), torch.tensor([[0.0, 1.0, 3.0], [2.0, 0.0, 0.0]])
    penalty = torch.tensor([0.5, -1.0])
    assert processors.apply_presence_penalty(logits, penalty, counts).tolist() == [[1, 0.5, 0.5], [2, 1, 1]]
    assert processors.apply_frequency_penalty(logits, penalty, counts).tolist() == [[1, 0.5, -0.5], [3, 1, 1]]


def test_bias_and_allowed() -> None:
    bias = torch.tensor([[0.0, 5.0, -7.0], [0.0, 0.0, 0.0]])
    assert processors.apply_bias(torch.ones(2, 3), bias).tolist() == [[1, 6, -6], [1, 1, 1]]
    allowed = torch.tensor([[True, False, True], [False, False, True]])
    assert kept(processors.apply_allowed(torch.ones(2, 3), allowed)) == [[0, 2], [2]]


def test_temperature() -> None:
    logits = torch.tensor([[1.0, 3.0], [1.0, 3.0], [-torch.inf, 4.0]])
    out = processors.apply_temperature(logits, torch.tensor([2.0, 1e-30, 0.5])).softmax(-1)
    assert out[0].tolist() == pytest.approx([1 / (1 + math.e), math.e / (1 + math.e)])
    assert out[1:].tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize(("k", "want"), [(1, [1]), (2, [1, 3]), (4, [0, 1, 3, 4]), (5, ALL), (9, ALL)])
def test_top_k(k: int, want: list[int]) -> None:
    assert kept(processors.apply_top_k(PROBABILITIES.log(), torch.tensor([k]))) == [want]


@pytest.mark.parametrize(
    ("p", "want"),
    [
        (0.0, [1]),
        (0.39, [1]),
        (0.41, [1, 3]),
        (0.69, [1, 3]),
        (0.71, [1, 3, 4]),
        (0.96, ALL),
        (1.0, ALL),
    ],
)
def test_top_p(p: float, want: list[int]) -> None:
    assert kept(processors.apply_top_p(PROBABILITIES.log(), torch.tensor([p]))) == [want]


def test_top_p_of_one_keeps_tokens_whose_probability_rounds_to_0() -> None:
    logits = torch.full((1, 3000), -60.0)
    logits[0, 7] = 10
    assert len(kept(processors.apply_top_p(logits, torch.tensor([1.0])))[0]) == 3000


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9, 0.999])
def test_top_p_of_a_large_vocabulary_is_the_smallest_set(p: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 2000) * torch.tensor([[0.1], [2.0], [8.0]])
    out = processors.apply_top_p(logits, torch.full((3,), p))
    for row, ids in zip(logits.double().softmax(-1), kept(out), strict=True):
        mass, smallest = float(row[ids].sum()), float(row[ids].min())
        assert mass >= p - 1e-6
        assert mass - smallest < p + 1e-6
        assert len(ids) == int((row >= smallest).sum())


def test_ties_keep_the_lower_ids_and_exactly_as_many_as_requested() -> None:
    logits = torch.zeros(2, 6)
    logits[1, 4] = 1
    assert kept(processors.apply_top_k(logits, torch.tensor([3, 3]))) == [[0, 1, 2], [0, 1, 4]]
    assert kept(processors.apply_top_p(logits, torch.tensor([0.0, 0.0]))) == [[0], [4]]


def test_min_p() -> None:
    out = processors.apply_min_p(PROBABILITIES.log().repeat(3, 1), torch.tensor([0.3, 1.0, 0.01]))
    assert kept(out) == [[1, 3, 4], [1], ALL]
    assert kept(processors.apply_min_p(PROBABILITIES.log(), torch.tensor([0.0]))) == [ALL]
