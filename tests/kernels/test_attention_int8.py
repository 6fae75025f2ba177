"""Attention over 8-bit keys and values against float32, and against itself alone."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ternvl.kernels.attention_int8 import (
    attention_int8,
    attention_int8_reference,
    block_bytes,
    read,
    tile_attention,
    tile_attention_reference,
    write_int8,
)
from ternvl.kernels.loader import library

WEIGHTS = 0.012  # relative error of queries and weights in 8 bits
STORED = 0.012  # relative error of keys and values in 8 bits
CASES = [(14, 2, 64, [5, 130, 64, 700], [1, 130, 17, 33]), (4, 2, 32, [33, 1], [33, 1]), (3, 3, 16, [100], [100])]
"""H, K, D, lengths, and the number of queries of each."""


@pytest.fixture(params=["torch", "portable", "avx2", "avxvnni", "avx512", "avx512vnni"], autouse=True)
def path(request: pytest.FixtureRequest, use_kernels: Callable[[str], None]) -> str:
    use_kernels(request.param)
    return str(request.param)


def stored(key_heads: int, size: int, lengths: list[int]) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """A cache in shuffled blocks whose other slots hold anything, its tables, and what was written."""
    torch.manual_seed(0)
    counts = [-(-length // 16) for length in lengths]
    cache = torch.randint(0, 256, (sum(counts) + 3, key_heads, block_bytes(size)), dtype=torch.uint8)
    free = iter(torch.randperm(len(cache)).tolist())
    tables = torch.zeros(len(lengths), max(counts), dtype=torch.int32)
    keys, values = ([torch.randn(length, key_heads, size) for length in lengths] for _ in range(2))
    for table, count, length, k, v in zip(tables, counts, lengths, keys, values, strict=True):
        table[:count] = torch.tensor([next(free) for _ in range(count)])
        positions = torch.arange(length)
        write_int8(cache, table[positions // 16].long() * 16 + positions % 16, k, v)
    return cache, tables, keys, values


def relative(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(("heads", "key_heads", "size", "lengths", "counts"), CASES)
@pytest.mark.parametrize("causal", [True, False])
def test_attention(heads: int, key_heads: int, size: int, lengths: list[int], counts: list[int], causal: bool) -> None:
    cache, tables, _, _ = stored(key_heads, size, lengths)
    starts = torch.tensor([0, *torch.tensor(counts).cumsum(0)], dtype=torch.int32)
    q, ends = torch.randn(sum(counts), heads, size), torch.tensor(lengths, dtype=torch.int32)
    y = attention_int8(q, cache, tables, starts, ends, causal=causal)
    assert relative(y, attention_int8_reference(q, cache, tables, starts, ends, causal=causal)) < WEIGHTS
    for i, end in enumerate(starts[1:].tolist()):
        one = torch.tensor([0, 1], dtype=torch.int32)
        alone = attention_int8(q[end - 1 : end], cache, tables[i : i + 1], one, ends[i : i + 1], causal=causal)
        assert torch.allclose(alone[0], y[end - 1], atol=1e-6)
        if library() is not None:
            assert torch.equal(alone[0], y[end - 1])


def test_what_is_written_is_read() -> None:
    cache, tables, keys, values = stored(2, 64, [50, 16])
    for table, k, v in zip(tables, keys, values, strict=True):
        count = -(-len(k) // 16)
        for got, wanted in zip(read(cache[table[:count].long()], 64), (k, v), strict=True):
            assert relative(got[:, : len(k)].transpose(0, 1), wanted) < STORED


def test_blocks_and_slots_that_are_not_there() -> None:
    cache, tables, _, _ = stored(2, 16, [20])
    with pytest.raises(IndexError):
        write_int8(cache, torch.tensor([len(cache) * 16]), torch.zeros(1, 2, 16), torch.zeros(1, 2, 16))
    one, length = torch.tensor([0, 1], dtype=torch.int32), torch.tensor([20], dtype=torch.int32)
    with pytest.raises(IndexError):
        attention_int8(torch.zeros(1, 2, 16), cache, tables + len(cache), one, length)


def test_a_tile_attends_among_its_patches() -> None:
    torch.manual_seed(0)
    qkv = torch.randn(2, 197, 3, 3, 64)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    y = tile_attention(qkv)
    assert relative(y, F.scaled_dot_product_attention(q, k, v).transpose(1, 2)) < 0.02
    assert relative(y, tile_attention_reference(qkv)) < WEIGHTS
    assert torch.allclose(y[1:], tile_attention(qkv[1:]), atol=1e-6)
    if library() is not None:
        assert torch.equal(y[1:], tile_attention(qkv[1:]))
