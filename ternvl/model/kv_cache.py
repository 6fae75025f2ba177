"""Keys and values of the past in blocks, and a decoder layer's attention over them.

Shapes: T tokens of a step, S sequences, W blocks a table, K key-value heads, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ternvl.config import LanguageConfig
from ternvl.errors import ConfigError
from ternvl.kernels.attention import paged_attention, write


class KVCache:
    """Keys [layers, blocks, K, D, block size] and values [layers, blocks, K, block size, D].

    The keys of a block are stored transposed: one query against a run of keys is then one vector instruction.
    """

    def __init__(
        self, config: LanguageConfig, num_blocks: int, block_size: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Raises ConfigError where the memory for it cannot be had."""
        shape = (config.num_layers, num_blocks, config.num_kv_heads)
        self.block_size = block_size
        self.num_bytes = num_blocks * self.block_bytes(config, block_size, dtype)
        # Left uninitialised: memory is committed only as blocks are used, and nothing reads what was not written.
        try:
            self.keys = torch.empty(*shape, config.head_dim, block_size, dtype=dtype, device=device)
            self.values = torch.empty(*shape, block_size, config.head_dim, dtype=dtype, device=device)
        except RuntimeError as error:
            message = f"The KV cache of {self.num_bytes} bytes does not fit into the memory of {device}."
            raise ConfigError(message) from error

    @staticmethod
    def block_bytes(config: LanguageConfig, block_size: int, dtype: torch.dtype) -> int:
        """Bytes one block takes."""
        return 2 * config.num_layers * block_size * config.num_kv_heads * config.head_dim * dtype.itemsize

    def copy(self, sources: Tensor, targets: Tensor) -> None:
        """Copy whole blocks in all layers: block numbers [n] each."""
        self.keys[:, targets] = self.keys[:, sources]
        self.values[:, targets] = self.values[:, sources]


@dataclass(frozen=True, slots=True, eq=False)
class PagedAttention:
    """An `Attention` for one step: writes the step's keys and values into the cache, then attends over it in place."""

    cache: KVCache
    slots: Tensor
    """[T], where each token's key and value go: block * block size + offset."""
    block_tables: Tensor
    """[S, W] int32, padded with anything."""
    query_starts: Tensor
    """[S + 1] int32: sequence s has the rows from `query_starts[s]` to `query_starts[s + 1]`."""
    lengths: Tensor
    """[S] int32: positions that the last query of a sequence sees."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [T, H, D], k and v [T, K, D] -> [T, H, D]."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        write(keys, values, self.slots, k, v)
        return paged_attention(q, keys, values, self.block_tables, self.query_starts, self.lengths)
