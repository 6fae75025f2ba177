"""Runs the decoder on a batch of training examples, and computes the loss on their answers.

Shapes: B examples, T tokens of all of them, L tokens of the longest, H query heads, K key-value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ternvl.model.internvl import InternVL
from training.tokens import QUESTION_WEIGHT, Example

GROUP_SIZES = {"cpu": 4, "cuda": 64}
"""Sequences that attend together: few waste less work on padding, many need fewer calls."""


class BatchAttention:
    """Causal attention within each of several concatenated sequences, on a device.

    Sequences are padded in small groups of similar length, so that one long sequence does not lengthen all others.
    """

    def __init__(self, lengths: Sequence[int], group_size: int = 4, device: torch.device | None = None) -> None:
        starts = torch.tensor([0, *lengths[:-1]]).cumsum(0)
        order = sorted(range(len(lengths)), key=lambda i: lengths[i])
        groups = [order[i : i + group_size] for i in range(0, len(order), group_size)]
        self.rows: list[Tensor] = []
        inside: list[Tensor] = []
        for group in groups:
            steps = torch.arange(lengths[group[-1]])
            is_token = steps < torch.tensor([lengths[i] for i in group])[:, None]  # [B, L]
            self.rows.append((starts[group][:, None] + steps).where(is_token, starts[group][:, None]).to(device))
            inside.append(is_token.flatten())
        kept = torch.cat(inside).nonzero().squeeze(1).to(device)  # [T], in the order of the groups
        tokens = torch.cat([rows.flatten() for rows in self.rows])[kept]
        self.back = kept[tokens.argsort()]  # [T], in the order of the tokens

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend: q [T, H, D], k and v [T, K, D] -> [T, H, D]."""
        repeat = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
        outs = []
        for rows in self.rows:
            padded_q, padded_k, padded_v = (x[rows].transpose(1, 2) for x in (q, k, v))  # [B, H, L, D]
            out = F.scaled_dot_product_attention(padded_q, padded_k, padded_v, is_causal=True)
            outs.append(out.transpose(1, 2).flatten(0, 1))
        return torch.cat(outs)[self.back]


def answer_loss(
    model: InternVL, examples: Sequence[Example], image_tokens: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor]:
    """Return the weighted mean cross-entropy, and for each example the share of its answers' tokens that are right.

    `image_tokens[i]` is [tiles * M, C] for an example with an image, else None. A token is right if it is the most
    likely one. Shares: [B].
    """
    lengths, device = [len(example.ids) for example in examples], model.device
    ids = torch.tensor([token for example in examples for token in example.ids], device=device)
    embeddings = model.embed(ids)
    rows, features, start = [], [], 0
    for example, tokens in zip(examples, image_tokens, strict=True):
        if tokens is not None:
            rows.append(torch.tensor(example.image_positions) + start)
            features.append(tokens)
        start += len(example.ids)
    if rows:
        embeddings = embeddings.index_copy(0, torch.cat(rows).to(device), torch.cat(features))
    positions = torch.cat([torch.arange(length) for length in lengths]).to(device)
    attention = BatchAttention(lengths, GROUP_SIZES[device.type], device)
    hidden = model.decode(embeddings, positions, attention)
    weights = torch.tensor([w for example in examples for w in [*example.weights[1:], 0.0]], device=device)
    chosen = weights.nonzero().squeeze(1)
    logits = model.logits(hidden[chosen])
    targets, weights = ids[chosen + 1], weights[chosen]
    losses = F.cross_entropy(logits, targets, reduction="none")
    owners = torch.repeat_interleave(torch.tensor(lengths)).to(device)[chosen]
    is_answer = (weights > QUESTION_WEIGHT).float()
    counts = torch.stack([(logits.argmax(-1) == targets) * is_answer, is_answer])
    right, total = counts.new_zeros(2, len(lengths)).index_add_(1, owners, counts)
    return (losses * weights).sum() / weights.sum(), right / total.clamp(min=1)
