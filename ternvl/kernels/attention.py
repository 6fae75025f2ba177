"""Temporary."""

from __future__ import annotations
import torch
from torch import Tensor


def paged_attention(
    q: Tensor, keys: Tensor, values: Tensor, block_tables: Tensor, query_starts: Tensor, lengths: Tensor
) -> Tensor:
    out = torch.empty_like(q)
    repeat = q.shape[1] // keys.shape[1]
    starts = query_starts.tolist()
    for s, length in enumerate(lengths.tolist()):
        rows = slice(starts[s], starts[s + 1])
        n = starts[s + 1] - starts[s]
        table = block_tables[s, : -(-length // keys.shape[-1])].long()
        k = keys[table].permute(1, 0, 3, 2).flatten(1, 2)[:, :length]  # [K, L, D]
        v = values[table].permute(1, 0, 2, 3).flatten(1, 2)[:, :length]
        k, v = k.repeat_interleave(repeat, 0), v.repeat_interleave(repeat, 0)
        scores = q[rows].transpose(0, 1) @ k.transpose(1, 2) * q.shape[-1] ** -0.5
        mask = torch.arange(length) > torch.arange(length - n, length)[:, None]
        out[rows] = (scores.masked_fill(mask, -torch.inf).softmax(-1) @ v).transpose(0, 1)
    return out
