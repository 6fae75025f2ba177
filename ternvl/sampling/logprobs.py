"""Natural log probabilities of tokens, given the logits of their positions. Answers and prompts share this code.

Shapes: R rows, V vocabulary, K likeliest tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ternvl.types import TokenLogprobs


def token_logprobs(logits: Tensor, token_ids: Sequence[int], num_top: int) -> list[TokenLogprobs]:
    """Return, for each row of logits [R, V], the values of its token of `token_ids` and of the likeliest tokens.

    There are `num_top` likeliest tokens, fewer where others are impossible. A row depends on no other row.
    """
    logprobs = logits.log_softmax(dim=-1)  # [R, V]
    chosen = logprobs.gather(1, torch.tensor(token_ids, dtype=torch.int64, device=logits.device)[:, None])  # [R, 1]
    ranks = 1 + (logprobs > chosen).sum(dim=-1, dtype=torch.int32)  # [R]; a sum in int64 takes five times as long
    best = logprobs.topk(min(num_top, logits.shape[-1]))  # [R, K]
    tops = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [
        TokenLogprobs(value, rank, tuple(pair for pair in zip(*top, strict=True) if pair[1] > -torch.inf))
        for value, rank, top in zip(chosen[:, 0].tolist(), ranks.tolist(), tops, strict=True)
    ]
