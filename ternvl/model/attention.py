"""How a decoder layer attends. The model hands over queries, keys and values of a flat run of tokens;
whoever runs the model decides which of them see which, and where the past is kept.

Shapes: T tokens, H query heads, K key-value heads, D head size.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor
from torch.nn import functional as F


class Attention(Protocol):
    """Attention over a flat batch of tokens."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [T, H, D], k and v [T, K, D], rotary positions applied -> [T, H, D]."""
        ...


class CausalAttention:
    """All tokens are one sequence and nothing is kept: the reference."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))  # [1, heads, T, D]
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return out.squeeze(0).transpose(0, 1)
