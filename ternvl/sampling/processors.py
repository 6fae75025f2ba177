"""Logits processors as pure functions.

Each takes logits [R, V] in float32 and one value per row [R], and returns new logits; tokens that may not be drawn have
-inf. The result of a row depends on no other row.

Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def apply_bitmask(logits: Tensor, bitmasks: Tensor) -> Tensor:
    """Keep the tokens whose bits are set in `bitmasks` [R, ceil(V / 32)], int32 on the CPU, lowest bit first."""
    bits = np.unpackbits(bitmasks.numpy().view(np.uint8), axis=1, count=logits.shape[-1], bitorder="little")
    banned = torch.from_numpy(bits == 0).to(logits.device)  # [R, V]
    return logits.masked_fill(banned, -torch.inf)


def apply_allowed(logits: Tensor, allowed: Tensor) -> Tensor:
    """Keep the tokens that are true in `allowed` [R, V] bool."""
    return logits.masked_fill(~allowed, -torch.inf)


def apply_bias(logits: Tensor, bias: Tensor) -> Tensor:
    """Add `bias` [R, V] (OpenAI's definition of `logit_bias`)."""
    return logits + bias


def apply_repetition_penalty(logits: Tensor, penalty: Tensor, seen: Tensor) -> Tensor:
    """Lower tokens of the prompt and the answer, `seen` [R, V] bool, by a factor (CTRL, arXiv 1909.05858)."""
    factor = penalty[:, None]
    lowered = torch.where(logits > 0, logits / factor, logits * factor)
    return torch.where(seen, lowered, logits)


def apply_presence_penalty(logits: Tensor, penalty: Tensor, counts: Tensor) -> Tensor:
    """Lower each token with `counts` [R, V] above 0 in the answer by a constant (OpenAI's definition)."""
    return logits - penalty[:, None] * (counts > 0)


def apply_frequency_penalty(logits: Tensor, penalty: Tensor, counts: Tensor) -> Tensor:
    """Lower each token by a constant times its `counts` [R, V] in the answer (OpenAI's definition)."""
    return logits - penalty[:, None] * counts


def apply_temperature(logits: Tensor, temperature: Tensor) -> Tensor:
    """Divide by temperatures above 0.

    The maximum of each row is subtracted first, so that a tiny temperature cannot overflow. A temperature that
    rounds to 0 in float32 is replaced by the smallest normal number.
    """
    smallest = torch.finfo(temperature.dtype).tiny
    return (logits - logits.amax(dim=-1, keepdim=True)) / temperature.clamp_min(smallest)[:, None]


def apply_top_k(logits: Tensor, k: Tensor) -> Tensor:
    """Keep the k most likely tokens, k >= 1. Among equal ones, lower ids are kept."""
    return _keep_largest(logits, k.clamp(max=logits.shape[-1]))


def apply_top_p(logits: Tensor, p: Tensor) -> Tensor:
    """Keep the fewest most likely tokens whose probabilities sum to p or more (arXiv 1904.09751).

    p = 0 keeps one token, p = 1 all of them.
    """
    probabilities = logits.softmax(dim=-1)
    vocab_size = logits.shape[-1]
    size = min(64, vocab_size)
    while True:  # a sharp distribution needs few tokens, and finding those is far cheaper than a sort
        before = probabilities.topk(size).values.double().cumsum(dim=-1)  # [R, size]
        if size == vocab_size or bool((before[:, -1] >= p).all()):
            break
        size = min(16 * size, vocab_size)
    counts = 1 + (before[:, :-1] < p[:, None]).sum(dim=-1)
    return _keep_largest(logits, torch.where(p >= 1, vocab_size, counts))


def apply_min_p(logits: Tensor, min_p: Tensor) -> Tensor:
    """Keep tokens that are at least `min_p` times as likely as the most likely one (arXiv 2407.01082)."""
    floor = logits.amax(dim=-1, keepdim=True) + min_p[:, None].log()
    return logits.masked_fill(logits < floor, -torch.inf)


def _keep_largest(logits: Tensor, counts: Tensor) -> Tensor:
    """Keep exactly the `counts` [R] largest logits of each row, also where several are equal."""
    largest = logits.topk(int(counts.max())).values  # [R, largest count]
    threshold = largest.gather(1, counts[:, None] - 1)
    above, ties = logits > threshold, logits == threshold
    num_missing = counts[:, None] - above.sum(dim=-1, keepdim=True)
    kept = above | (ties & (ties.cumsum(dim=-1) <= num_missing))
    return logits.masked_fill(~kept, -torch.inf)


TRUNCATIONS = {"top_k": apply_top_k, "top_p": apply_top_p, "min_p": apply_min_p}
"""The processors that keep only some tokens, by sampling parameter, in the order in which they are applied. A row whose
parameter has its default value is left as it is."""
