"""The interface through which a decoder layer attends, and the reference implementation.

The model passes the queries, keys and values of a flat batch of tokens. The implementation decides which tokens see
which, and where earlier keys and values are kept.

Shapes: T tokens, H query heads, K key-value heads, D head size.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor
from torch.nn import functional as F


class Attention(Protocol):
    """Attention over a flat batch of tokens."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend in one layer: q [T, H, D], k and v [T, K, D], rotary positions applied -> [T, H, D]."""
        ...


class CausalAttention:
    """Causal attention over one sequence without a cache: the reference."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))  # [1, heads, T, D]
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return out.squeeze(0).transpose(0, 1)
