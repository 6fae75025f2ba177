"""Log probabilities of tokens: against float64, row by row, and where tokens are equally likely or impossible."""

from __future__ import annotations

import pytest
import torch

from ternvl.sampling.logprobs import token_logprobs


@pytest.mark.parametrize("vocab_size", [7, 1000, 151_674])
def test_values_ranks_and_the_likeliest(vocab_size: int) -> None:
    logits = 3 * torch.randn(5, vocab_size, generator=torch.Generator().manual_seed(1))
    ids = [0, 1, int(logits[2].argmax()), int(logits[3].argmin()), vocab_size - 1]
    want = logits.double().log_softmax(dim=-1)
    found = token_logprobs(logits, ids, 6)
    for row, token_id, each in zip(want, ids, found, strict=True):
        assert each.logprob == pytest.approx(float(row[token_id]), abs=5e-5)
        assert each.rank == 1 + int((row > row[token_id]).sum())
        assert [other for other, _ in each.top] == row.topk(6).indices.tolist()
        assert [value for _, value in each.top] == pytest.approx(row.topk(6).values.tolist(), abs=5e-5)
    assert (found[2].rank, found[3].rank) == (1, vocab_size)


@pytest.mark.parametrize("vocab_size", [61, 151_674])
def test_a_row_has_the_same_bits_among_others(vocab_size: int) -> None:
    logits = torch.randn(9, vocab_size, generator=torch.Generator().manual_seed(2))
    ids = list(range(9))
    alone = [token_logprobs(logits[row : row + 1].clone(), [row], 3)[0] for row in ids]
    assert token_logprobs(logits, ids, 3) == alone


def test_equal_and_impossible_tokens() -> None:
    logits = torch.tensor([[1.0, 1.0, -torch.inf, 0.0]])
    (found,) = token_logprobs(logits, [1], 4)
    assert found.rank == 1
    assert len(found.top) == 3
    assert token_logprobs(logits, [3], 0)[0].rank == 3
    assert token_logprobs(logits, [3], 0)[0].top == ()
    assert token_logprobs(logits, [2], 0)[0].logprob == -torch.inf
