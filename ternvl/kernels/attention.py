"""Attention over a paged cache of keys and values: native where possible, otherwise in plain torch.

The native kernel reads blocks where they are. The bits of a row depend only on its own query and on the keys and
values up to its position, not on other rows, chunks, blocks or threads. `cpu/attention/float32.cpp` describes the
arithmetic.

Shapes: T tokens, S sequences, H query heads, K key-value heads, D head size, B blocks, W blocks that a table can hold.
One layer's keys are [B, K, D, block size], so that a vector holds neighbouring keys, and its values [B, K, block size,
D].
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch.nn import functional as F

from ternvl.kernels.loader import Int, Int64, Library, Pointer, library


class Problem(ctypes.Structure):
    """One call of attention: `Problem` of `cpu/attention/attention.h`. It points into tensors that it does not keep."""

    _fields_ = (
        *((name, Pointer) for name in ("q", "out", "tables", "query_starts", "lengths")),
        *((name, Int64) for name in ("q_stride", "out_stride", "table_width")),
        *((name, Int64) for name in ("num_sequences", "num_blocks", "num_tokens")),
        *((name, ctypes.c_int32) for name in ("heads", "key_heads", "head_size", "block_size")),
    )

    @classmethod
    def of(
        cls, q: Tensor, out: Tensor, tables: Tensor, starts: Tensor, lengths: Tensor,
        num_blocks: int, key_heads: int, block_size: int,
    ) -> Problem:  # fmt: skip
        """q and out are [T, H, D] with the heads of a token next to each other; the others are contiguous int32."""
        num_tokens, heads, head_size = q.shape
        num_sequences, width = tables.shape
        assert heads % key_heads == 0
        assert lengths.shape[0] == num_sequences == starts.shape[0] - 1
        return cls(
            *(each.data_ptr() for each in (q, out, tables, starts, lengths)),
            *(q.stride(0), out.stride(0), width, num_sequences, num_blocks, num_tokens),
            *(heads, key_heads, head_size, block_size),
        )


def paged_attention(
    q: Tensor, keys: Tensor, values: Tensor, block_tables: Tensor, query_starts: Tensor, lengths: Tensor
) -> Tensor:
    """Attend over the past of each sequence: q [T, H, D] -> [T, H, D].

    Rows query_starts[s] to query_starts[s + 1] of q are the last queries of sequence s, which has lengths[s] positions
    including theirs; each query sees the positions up to its own. `block_tables` [S, W] holds the blocks of each
    sequence; entries behind the last block that it needs are not read. `query_starts` is [S + 1] and `lengths` [S]; all
    three are int32. Slots that were never written may hold anything. Raises IndexError if a table names a block that
    does not exist.
    """
    loaded = _library_for(q, keys)
    if loaded is None:
        return paged_attention_reference(q, keys, values, block_tables, query_starts, lengths)
    return _paged_attention(loaded, q, keys, values, block_tables, query_starts, lengths)


def write(keys: Tensor, values: Tensor, slots: Tensor, k: Tensor, v: Tensor) -> None:
    """Write k and v [T, K, D] to slots [T], int64, where a slot is block * block size + offset.

    Raises IndexError if a slot does not exist.
    """
    loaded = _library_for(k, keys)
    if loaded is None:
        write_reference(keys, values, slots, k, v)
    else:
        _write(loaded, keys, values, slots, k, v)


def paged_attention_reference(
    q: Tensor, keys: Tensor, values: Tensor, block_tables: Tensor, query_starts: Tensor, lengths: Tensor
) -> Tensor:
    """`paged_attention` in plain torch: gathers the past of one sequence after the other."""
    out = torch.empty_like(q)
    starts = query_starts.tolist()
    block_size = values.shape[2]
    for table, start, end, length in zip(block_tables, starts, starts[1:], lengths.tolist(), strict=False):
        blocks = table[: -(-length // block_size)].long()
        past_keys = keys[blocks].permute(1, 0, 3, 2).flatten(1, 2)[:, :length]  # [K, length, D]
        past_values = values[blocks].transpose(0, 1).flatten(1, 2)[:, :length]
        positions = torch.arange(length, device=q.device)
        is_seen = positions <= positions[length - (end - start) :, None]  # [queries, length]
        queries = q[start:end].transpose(0, 1)  # [H, queries, D]
        attended = F.scaled_dot_product_attention(
            queries[None], past_keys[None], past_values[None], attn_mask=is_seen, enable_gqa=True
        )
        out[start:end] = attended[0].transpose(0, 1)
    return out


def write_reference(keys: Tensor, values: Tensor, slots: Tensor, k: Tensor, v: Tensor) -> None:
    """`write` in plain torch."""
    blocks, offsets = slots // values.shape[2], slots % values.shape[2]
    keys[blocks, :, :, offsets] = k
    values[blocks, :, offsets] = v


def _library_for(x: Tensor, cache: Tensor) -> Library | None:
    is_served = x.is_cpu and cache.is_cpu and x.dtype == cache.dtype == torch.float32
    return library() if is_served else None


# The functions below run once for each layer and step. They read each shape once, because asking torch takes time.


def _paged_attention(
    library: Library, q: Tensor, keys: Tensor, values: Tensor, block_tables: Tensor, starts: Tensor, lengths: Tensor
) -> Tensor:
    cache = _cache_shape(keys, values, q.shape[2])
    q, out = token_rows(q), torch.empty(q.shape)
    block_tables, starts, lengths = (x.int().contiguous() for x in (block_tables, starts, lengths))
    problem = Problem.of(q, out, block_tables, starts, lengths, *cache)
    function = library.function("ternvl_paged_attention", Pointer, Pointer, Pointer, Int, result=ctypes.c_bool)
    if not function(ctypes.addressof(problem), keys.data_ptr(), values.data_ptr(), torch.get_num_threads()):
        raise IndexError(f"a sequence's queries, length or blocks are not within {len(q)} rows and {cache[0]} blocks")
    return out


def _write(library: Library, keys: Tensor, values: Tensor, slots: Tensor, k: Tensor, v: Tensor) -> None:
    num_tokens, _, head_size = k.shape
    num_blocks, key_heads, block_size = _cache_shape(keys, values, head_size)
    assert k.shape == v.shape == (slots.shape[0], key_heads, head_size)
    k, v, slots = token_rows(k), token_rows(v), slots.long().contiguous()
    function = library.function("ternvl_write_kv", *_WRITE_KV, result=ctypes.c_bool)
    is_sound = function(
        *(keys.data_ptr(), values.data_ptr(), slots.data_ptr(), k.data_ptr(), k.stride(0), v.data_ptr(), v.stride(0)),
        *(num_tokens, num_blocks, key_heads, head_size, block_size, torch.get_num_threads()),
    )
    if not is_sound:
        raise IndexError(f"a slot is not within {num_blocks} blocks of {block_size}")


_WRITE_KV = (
    *(Pointer, Pointer, Pointer, Pointer, Int64, Pointer, Int64),
    *(Int64, Int64, Int, Int, Int, Int),
)


def _cache_shape(keys: Tensor, values: Tensor, head_size: int) -> tuple[int, int, int]:
    """Return B, K and the block size of a cache, and check its tensors."""
    num_blocks, key_heads, block_size, size = values.shape
    assert (num_blocks, key_heads, head_size, block_size) == keys.shape
    assert size == head_size
    assert keys.dtype == values.dtype
    assert keys.is_contiguous()
    assert values.is_contiguous()
    return num_blocks, key_heads, block_size


def token_rows(x: Tensor) -> Tensor:
    """Return x [T, heads, D] with the heads of each token next to each other. Tokens may be apart."""
    return x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous()
