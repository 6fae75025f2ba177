"""Keys and values of the past in blocks, and attention over them: the reference, in plain torch.

Shapes: T tokens of a step, S sequences, Q queries a sequence, B blocks a table, L = B * block size positions,
H query heads, K key-value heads, G = H / K, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ternvl.config import LanguageConfig
from ternvl.errors import ConfigError


class KVCache:
    """Keys and values of all layers, [layers, blocks, block size, K, D] each."""

    def __init__(
        self, config: LanguageConfig, num_blocks: int, block_size: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Raises ConfigError where the memory for it cannot be had."""
        shape = (config.num_layers, num_blocks, block_size, config.num_kv_heads, config.head_dim)
        self.block_size = block_size
        # Left uninitialised: memory is committed only as blocks are cleared and used.
        try:
            self.keys = torch.empty(shape, dtype=dtype, device=device)
            self.values = torch.empty(shape, dtype=dtype, device=device)
        except RuntimeError as error:
            size = num_blocks * self.block_bytes(config, block_size, dtype)
            raise ConfigError(f"The KV cache of {size} bytes does not fit into the memory of {device}.") from error

    @staticmethod
    def block_bytes(config: LanguageConfig, block_size: int, dtype: torch.dtype) -> int:
        """Bytes one block takes."""
        return 2 * config.num_layers * block_size * config.num_kv_heads * config.head_dim * dtype.itemsize

    def clear(self, blocks: Tensor) -> None:
        """Zero blocks [n] before their first use: a masked position counts for nothing only while it is finite."""
        self.keys[:, blocks] = 0
        self.values[:, blocks] = 0

    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Put k and v [T, K, D] at slots [T]; a slot is block * block size + offset."""
        self.keys[layer].flatten(0, 1)[slots] = k
        self.values[layer].flatten(0, 1)[slots] = v

    def read(self, layer: int, block_tables: Tensor) -> tuple[Tensor, Tensor]:
        """Block tables [S, B] -> keys and values [S, K, L, D]."""
        k, v = self.keys[layer][block_tables], self.values[layer][block_tables]  # [S, B, block size, K, D]
        return k.flatten(1, 2).transpose(1, 2), v.flatten(1, 2).transpose(1, 2)


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Rows of a flat batch that attend together: S sequences with Q queries each, where S or Q is 1."""

    rows: slice
    """Its S * Q rows, the sequences one after the other."""
    block_tables: Tensor
    """[S, B]; short tables are padded with blocks of their own."""
    lengths: Tensor
    """[S], positions that the last query of a sequence sees."""
    num_queries: int
    max_length: int
    """The largest of `lengths`, known without asking the device."""

    @property
    def mask(self) -> Tensor:
        """What each query does not see is False: [S, 1, Q, max_length]."""
        positions = torch.arange(self.max_length, device=self.lengths.device)
        queries = torch.arange(1 - self.num_queries, 1, device=self.lengths.device)
        last_seen = self.lengths[:, None] + queries  # [S, Q]
        return (positions < last_seen[:, :, None]).unsqueeze(1)


class PagedAttention:
    """An `Attention` for one step: writes the step's keys and values into the cache, then attends over it."""

    def __init__(self, cache: KVCache, slots: Tensor, groups: tuple[Group, ...]) -> None:
        """`slots` [T] is where each token's key and value go; `groups` cover the T rows."""
        self.cache = cache
        self.slots = slots
        self.groups = [(group, group.mask) for group in groups]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [T, H, D], k and v [T, K, D] -> [T, H, D]."""
        self.cache.write(layer, self.slots, k, v)
        out = torch.empty_like(q)
        for group, mask in self.groups:
            keys, values = self.cache.read(layer, group.block_tables)
            keys, values = keys[:, :, : group.max_length], values[:, :, : group.max_length]
            attend = _attend_chunk if group.num_queries > 1 else _attend_rows
            out[group.rows] = attend(q[group.rows], keys, values, mask)
        return out


def _attend_rows(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """One query a sequence: q [S, H, D] -> [S, H, D]. The G heads of a key become its queries, so it is read once."""
    q = q.view(len(q), keys.shape[1], -1, q.shape[-1])  # [S, K, G, D]
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask).flatten(1, 2)


def _attend_chunk(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """One sequence: q [Q, H, D] -> [Q, H, D]."""
    q = q.transpose(0, 1).unsqueeze(0)  # [1, H, Q, D]
    is_whole = q.shape[2] == keys.shape[2]  # no past: the kernel's own causal mask is faster
    out = F.scaled_dot_product_attention(
        q, keys, values, attn_mask=None if is_whole else mask, is_causal=is_whole, enable_gqa=True
    )
    return out.squeeze(0).transpose(0, 1)
