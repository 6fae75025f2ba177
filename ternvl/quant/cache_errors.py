"""Measuring the error that 8-bit keys and values cause in a decoder's attention while a model runs over samples.

Shapes: T tokens, H query heads, K key-value heads, D head size.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from ternvl.config import LanguageConfig
from ternvl.kernels.attention_int8 import BLOCK
from ternvl.model.attention import Attention, CausalAttention
from ternvl.model.kv_cache import Int8KVCache, PagedAttention


def over_int8(language: LanguageConfig, num_tokens: int) -> PagedAttention:
    """Return attention for one sequence, computed from its start, over a new 8-bit cache."""
    num_blocks = -(-num_tokens // BLOCK)
    return PagedAttention(
        Int8KVCache(language, num_blocks),
        slots=torch.arange(num_tokens),
        block_tables=torch.arange(num_blocks, dtype=torch.int32)[None],
        query_starts=torch.tensor([0, num_tokens], dtype=torch.int32),
        lengths=torch.tensor([num_tokens], dtype=torch.int32),
    )


class MeasuredAttention(Attention):
    """Exact attention that also records the error of attention over an 8-bit cache."""

    def __init__(self, language: LanguageConfig) -> None:
        self._language = language
        self._exact = CausalAttention()
        self._sums: dict[int, Tensor] = defaultdict(lambda: torch.zeros(2, dtype=torch.float64))

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend exactly, and record the error: q [T, H, D], k and v [T, K, D] -> [T, H, D]."""
        wanted = self._exact(layer, q, k, v)
        if self._language.head_dim % BLOCK == 0:
            error = over_int8(self._language, len(q))(layer, q, k, v).double() - wanted
            self._sums[layer] += torch.stack([error.square().sum(), wanted.double().square().sum()])
        return wanted

    def errors(self) -> dict[int, float]:
        """Return each layer's root-mean-square error, relative to the size of the exact result."""
        return {layer: float((error / size).sqrt()) for layer, (error, size) in self._sums.items() if size > 0}
