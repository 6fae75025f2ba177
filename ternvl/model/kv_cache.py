"""The KV cache: keys and values in blocks, and a decoder layer's attention over them.

Shapes: T tokens of a step, S sequences, W blocks a table, B blocks, K key-value heads, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from ternvl.config import LanguageConfig
from ternvl.errors import ConfigError
from ternvl.kernels import attention_int8
from ternvl.kernels.attention import paged_attention, write


class FloatKVCache:
    """A cache of floats: keys [layers, B, K, D, block size] and values [layers, B, K, block size, D].

    The keys of a block are stored transposed, so one query against consecutive keys is one vector instruction.
    """

    def __init__(
        self, config: LanguageConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (config.num_layers, num_blocks, config.num_kv_heads)
        self.block_size = block_size
        self.keys = torch.empty(*shape, config.head_dim, block_size, dtype=dtype, device=device)
        self.values = torch.empty(*shape, block_size, config.head_dim, dtype=dtype, device=device)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.keys, self.values

    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        write(self.keys[layer], self.values[layer], slots, k, v)

    def attend(self, layer: int, q: Tensor, block_tables: Tensor, query_starts: Tensor, lengths: Tensor) -> Tensor:
        return paged_attention(q, self.keys[layer], self.values[layer], block_tables, query_starts, lengths)


class Int8KVCache:
    """A cache of bytes [layers, B, K, ...] as `attention_int8.py` lays them out: each key and value has its scale."""

    block_size = attention_int8.BLOCK

    def __init__(self, config: LanguageConfig, num_blocks: int) -> None:
        size = attention_int8.block_bytes(config.head_dim)
        self.blocks = torch.empty(config.num_layers, num_blocks, config.num_kv_heads, size, dtype=torch.uint8)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.blocks,)

    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        attention_int8.write_int8(self.blocks[layer], slots, k, v)

    def attend(self, layer: int, q: Tensor, block_tables: Tensor, query_starts: Tensor, lengths: Tensor) -> Tensor:
        return attention_int8.attention_int8(q, self.blocks[layer], block_tables, query_starts, lengths)


KVCache: TypeAlias = FloatKVCache | Int8KVCache


def make_cache(
    config: LanguageConfig, num_blocks: int, block_size: int, *, dtype: torch.dtype, device: torch.device
) -> KVCache:
    """Allocate a cache of `dtype`; torch.int8 needs a CPU and blocks of 16.

    The memory is not initialised, so pages are committed as blocks are first written. Attention reads written slots
    only. Raises ConfigError if the memory cannot be allocated.
    """
    try:
        if dtype == torch.int8:
            return Int8KVCache(config, num_blocks)
        return FloatKVCache(config, num_blocks, block_size, dtype, device)
    except RuntimeError as error:
        size = num_blocks * block_bytes(config, block_size, dtype)
        message = f"The KV cache of {size} bytes does not fit into the memory of {device}."
        raise ConfigError(message) from error


def block_bytes(config: LanguageConfig, block_size: int, dtype: torch.dtype) -> int:
    """Return the bytes that one block takes in all layers."""
    if dtype == torch.int8:
        return config.num_layers * config.num_kv_heads * attention_int8.block_bytes(config.head_dim)
    return 2 * config.num_layers * block_size * config.num_kv_heads * config.head_dim * dtype.itemsize


def copy_blocks(cache: KVCache, sources: Tensor, targets: Tensor) -> None:
    """Copy blocks `sources` to blocks `targets` in all layers; both are block numbers [n]."""
    for tensor in cache.tensors:
        tensor[:, targets] = tensor[:, sources]


@dataclass(frozen=True, slots=True, eq=False)
class PagedAttention:
    """An `Attention` for one step: writes the step's keys and values into the cache, then attends over it in place."""

    cache: KVCache
    slots: Tensor
    """[T], the slot of each token's key and value: block * block size + offset."""
    block_tables: Tensor
    """[S, W] int32. Entries after a sequence's last block are not read."""
    query_starts: Tensor
    """[S + 1] int32: the rows of sequence s start at `query_starts[s]` and end before `query_starts[s + 1]`."""
    lengths: Tensor
    """[S] int32: the number of positions that the last query of each sequence sees."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write k and v [T, K, D], then attend with q: [T, H, D] -> [T, H, D]."""
        self.cache.write(layer, self.slots, k, v)
        return self.cache.attend(layer, q, self.block_tables, self.query_starts, self.lengths)
