"""Attention over keys and values of 8 bits in blocks of 16 positions: native where possible, otherwise in plain torch.

A cache is bytes [B, K, 32 * D + 128]; `cpu/attention/int8_cache.h` describes a block. Keys and values have one scale
for each position and head. The native kernel also quantises queries, and the weights within a tile, to 8 bits. The bits
of a row depend only on its own query and on the positions that it sees.

Shapes: T tokens, S sequences, H query heads, K key-value heads, D head size, B blocks, W blocks that a table can hold.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch.nn import functional as F

from ternvl.kernels.attention import Problem, token_rows
from ternvl.kernels.loader import Int, Int64, Library, Pointer, library

BLOCK = 16
"""Positions of a block."""


def block_bytes(head_size: int) -> int:
    """Return the bytes of one block of one key-value head."""
    return 2 * BLOCK * head_size + 2 * BLOCK * 4


def attention_int8(
    q: Tensor, cache: Tensor, block_tables: Tensor, query_starts: Tensor, lengths: Tensor, *, causal: bool = True
) -> Tensor:
    """Attend over the past of each sequence: q [T, H, D] float32 -> [T, H, D].

    `block_tables` [S, W], `query_starts` [S + 1] and `lengths` [S] are int32, as `paged_attention` takes them.
    Without `causal` each query sees its whole sequence. Raises IndexError if a table names a block that does not exist.
    """
    loaded = _library_for(q)
    if loaded is None:
        return attention_int8_reference(q, cache, block_tables, query_starts, lengths, causal=causal)
    q, out = token_rows(q), q.new_empty(q.shape)
    tables, starts, lengths = (x.int().contiguous() for x in (block_tables, query_starts, lengths))
    problem = Problem.of(q, out, tables, starts, lengths, cache.shape[0], cache.shape[1], BLOCK)
    function = loaded.function("ternvl_attention_int8", Pointer, Pointer, ctypes.c_bool, Int, result=ctypes.c_bool)
    if not function(ctypes.addressof(problem), cache.data_ptr(), causal, torch.get_num_threads()):
        raise IndexError(f"a sequence is not within {len(q)} rows and {cache.shape[0]} blocks")
    return out


def write_int8(cache: Tensor, slots: Tensor, k: Tensor, v: Tensor) -> None:
    """Write k and v [T, K, D] float32 to slots [T] int64, where a slot is block * 16 + offset.

    Raises IndexError if a slot does not exist.
    """
    loaded = _library_for(k)
    if loaded is None:
        return write_int8_reference(cache, slots, k, v)
    num_tokens, heads, size = k.shape
    k, v, slots = token_rows(k), token_rows(v), slots.long().contiguous()
    function = loaded.function("ternvl_write_kv_int8", *_WRITE, result=ctypes.c_bool)
    is_sound = function(
        *(cache.data_ptr(), slots.data_ptr(), k.data_ptr(), k.stride(0), v.data_ptr(), v.stride(0)),
        *(num_tokens, cache.shape[0], heads, size, torch.get_num_threads()),
    )
    if not is_sound:
        raise IndexError(f"a slot is not within {cache.shape[0]} blocks of {BLOCK}")
    return None


def tile_attention(qkv: Tensor) -> Tensor:
    """Attend among the patches of each image tile, in 8 bits: qkv [N, L, 3, H, D] float32 -> [N, L, H, D].

    The mean of the keys over the patches is subtracted from the keys first, which changes no weight and narrows the
    range of the keys (arXiv 2410.02367).
    """
    n, length, _, heads, size = qkv.shape
    loaded = _library_for(qkv)
    if loaded is None:
        return tile_attention_reference(qkv)
    qkv, out = qkv.contiguous(), qkv.new_empty(n, length, heads, size)
    function = loaded.function("ternvl_tile_attention", Pointer, Int64, Int64, Int, Int, Pointer, Int)
    function(qkv.data_ptr(), n, length, heads, size, out.data_ptr(), torch.get_num_threads())
    return out


def tile_attention_reference(qkv: Tensor) -> Tensor:
    """`tile_attention` in plain torch: with the same quantised keys and values, but exact queries and weights."""
    n, length, _, heads, size = qkv.shape
    rows = qkv.flatten(0, 1)  # [N * L, 3, H, D]
    keys = (qkv[:, :, 1] - qkv[:, :, 1].mean(dim=1, keepdim=True)).flatten(0, 1)
    blocks = -(-length // BLOCK)
    cache = torch.empty(n * blocks, heads, block_bytes(size), dtype=torch.uint8)
    tiles = torch.arange(n)[:, None]
    slots = (tiles * blocks * BLOCK + torch.arange(length)).flatten()
    write_int8_reference(cache, slots, keys, rows[:, 2])
    tables = torch.arange(n * blocks, dtype=torch.int32).view(n, blocks)
    starts = torch.arange(n + 1, dtype=torch.int32) * length
    lengths = torch.full((n,), length, dtype=torch.int32)
    attended = attention_int8_reference(rows[:, 0], cache, tables, starts, lengths, causal=False)
    return attended.view(n, length, heads, size)


def attention_int8_reference(
    q: Tensor, cache: Tensor, block_tables: Tensor, query_starts: Tensor, lengths: Tensor, *, causal: bool = True
) -> Tensor:
    """`attention_int8` in plain torch: with the same quantised keys and values, but exact queries and weights."""
    out = torch.empty_like(q)
    starts = query_starts.tolist()
    for table, start, end, length in zip(block_tables, starts, starts[1:], lengths.tolist(), strict=False):
        keys, values = read(cache[table[: -(-length // BLOCK)].long()], q.shape[2])
        positions = torch.arange(length)
        first = length - (end - start)
        is_seen = positions <= (positions[first:, None] if causal else torch.full((end - start, 1), length))
        queries = q[start:end].transpose(0, 1)[None]
        past_keys, past_values = keys[None, :, :length], values[None, :, :length]
        attended = F.scaled_dot_product_attention(queries, past_keys, past_values, attn_mask=is_seen, enable_gqa=True)
        out[start:end] = attended[0].transpose(0, 1)
    return out


def read(blocks: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the keys and values [K, n * 16, D] float32 that blocks [n, K, bytes] hold."""
    n, heads, _ = blocks.shape
    bytes_of = BLOCK * size
    keys = blocks[..., :bytes_of].view(n, heads, size // 4, BLOCK, 4).permute(1, 0, 3, 2, 4).flatten(3) - 128.0
    signed = blocks[..., bytes_of : 2 * bytes_of].contiguous().view(torch.int8)
    values = signed.view(n, heads, BLOCK // 4, size, 4).permute(1, 0, 2, 4, 3).flatten(2, 3).float()
    scales = blocks[..., 2 * bytes_of :].contiguous().view(torch.float32).view(n, heads, 2, BLOCK).permute(2, 1, 0, 3)
    return (keys * scales[0, ..., None]).flatten(1, 2), (values * scales[1, ..., None]).flatten(1, 2)


def write_int8_reference(cache: Tensor, slots: Tensor, k: Tensor, v: Tensor) -> None:
    """`write_int8` in plain torch."""
    size = k.shape[2]
    if len(slots) and not (int(slots.min()) >= 0 and int(slots.max()) < len(cache) * BLOCK):
        raise IndexError(f"a slot is not within {len(cache)} blocks of {BLOCK}")
    blocks, offsets = slots // BLOCK, slots % BLOCK
    scales = cache[..., 2 * BLOCK * size :].view(torch.float32).view(*cache.shape[:2], 2, BLOCK)
    for index, rows in enumerate((k, v)):
        largest = rows.abs().amax(dim=2, keepdim=True)
        whole = torch.round(rows * torch.where(largest > 0, 127 / largest, 0.0))
        scales[blocks, :, index, offsets] = largest.squeeze(2) / 127
        if index == 0:
            keys = cache[..., : BLOCK * size].view(*cache.shape[:2], size // 4, BLOCK, 4)
            keys[blocks, :, :, offsets] = (whole + 128).to(torch.uint8).unflatten(2, (-1, 4))
        else:
            values = cache[..., BLOCK * size : 2 * BLOCK * size].view(*cache.shape[:2], BLOCK // 4, size, 4)
            values[blocks, :, offsets // 4, :, offsets % 4] = whole.to(torch.int8).view(torch.uint8)


def _library_for(x: Tensor) -> Library | None:
    return library() if x.is_cpu and x.dtype == torch.float32 and x.shape[-1] % 16 == 0 else None


_WRITE = (*(Pointer, Pointer, Pointer, Int64, Pointer, Int64), *(Int64, Int64, Int, Int, Int))
