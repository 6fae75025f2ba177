"""Paged attention against softmax in float64, and against itself: its bits may depend on nothing but the past.

Shapes: T tokens, S sequences, H query heads, K key-value heads, D head size, B blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ternvl.errors import ConfigError
from ternvl.kernels import attention, loader
from ternvl.kernels.loader import library

FLOAT32 = 3e-6  # the largest absolute error for values of a standard normal distribution
NATIVE = ("portable", "avx2", "avx512")


def choose(choice: str, monkeypatch: pytest.MonkeyPatch) -> str:
    try:
        loaded = loader.load(choice) if choice != "torch" else True
    except ConfigError as error:
        pytest.skip(str(error))
    if not loaded:
        pytest.skip("no compiler")
    monkeypatch.setenv(loader.VARIABLE, choice)
    return choice


@pytest.fixture(params=NATIVE)
def native(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    return choose(request.param, monkeypatch)


@pytest.fixture(params=("torch", *NATIVE))
def any_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    return choose(request.param, monkeypatch)


@dataclass
class Sequences:
    """Queries, keys and values of every position of some sequences, and the cache that holds them."""

    qs: list[Tensor]
    ks: list[Tensor]
    vs: list[Tensor]
    keys: Tensor
    values: Tensor
    tables: Tensor
    dtype: torch.dtype = torch.float32

    @classmethod
    def random(
        cls,
        lengths: list[int],
        heads: int = 14,
        key_heads: int = 2,
        size: int = 64,
        block_size: int = 16,
        seed: int = 0,
    ) -> Sequences:
        generator = torch.Generator().manual_seed(seed)

        def rows(length: int, heads: int) -> Tensor:
            return torch.randn(length, heads, size, generator=generator)

        ks, vs = ([rows(n, key_heads) for n in lengths] for _ in range(2))
        return cls.stored([rows(n, heads) for n in lengths], ks, vs, block_size, generator)

    @classmethod
    def stored(
        cls, qs: list[Tensor], ks: list[Tensor], vs: list[Tensor], block_size: int, generator: torch.Generator
    ) -> Sequences:
        """In blocks of a random order; every slot that is not written to holds NaN."""
        counts = [-(-len(k) // block_size) for k in ks]
        key_heads, size = ks[0].shape[1:]
        num_blocks = sum(counts) + 3
        order = torch.randperm(num_blocks, generator=generator).int()
        keys = torch.full((num_blocks, key_heads, size, block_size), math.nan)
        values = torch.full((num_blocks, key_heads, block_size, size), math.nan)
        tables = torch.full((len(ks), max(counts) + 2), 2**31 - 1, dtype=torch.int32)
        for table, blocks, k, v in zip(tables, order[: sum(counts)].split(counts), ks, vs, strict=True):
            table[: len(blocks)] = blocks
            positions = torch.arange(len(k))
            slots = blocks[positions // block_size].long() * block_size + positions % block_size
            attention.write(keys, values, slots, k, v)
        return cls(qs, ks, vs, keys, values, tables)

    def moved(self, block_size: int, seed: int) -> Sequences:
        """The same in other blocks."""
        return self.stored(self.qs, self.ks, self.vs, block_size, torch.Generator().manual_seed(seed))

    def attend(self, chunks: list[tuple[int, int, int]]) -> list[Tensor]:
        """Attention of (sequence, first position, end) in one call, a tensor for each."""
        q = torch.cat([self.qs[s][start:end] for s, start, end in chunks])
        counts = [end - start for _, start, end in chunks]
        starts = torch.tensor([0, *counts]).cumsum(0).int()
        lengths = torch.tensor([end for _, _, end in chunks], dtype=torch.int32)
        tables = self.tables[[s for s, _, _ in chunks]]
        return list(attention.paged_attention(q, self.keys, self.values, tables, starts, lengths).split(counts))

    def whole(self, s: int) -> Tensor:
        return self.attend([(s, 0, len(self.qs[s]))])[0]

    def expected(self, s: int, start: int, end: int) -> Tensor:
        """In float64, of all scores at once."""
        q, k, v = self.qs[s][start:end].double(), self.ks[s][:end].double(), self.vs[s][:end].double()
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        scores = torch.einsum("qhd,lhd->hql", q, k) / math.sqrt(q.shape[-1])
        is_future = torch.arange(end) > torch.arange(start, end)[:, None]
        return torch.einsum("hql,lhd->qhd", scores.masked_fill(is_future, -math.inf).softmax(-1), v)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=FLOAT32)


@pytest.mark.parametrize(
    ("size", "block_size", "heads", "key_heads"),
    [(8, 1, 2, 2), (16, 3, 4, 2), (20, 16, 7, 1), (64, 32, 2, 1), (64, 16, 14, 2), (20, 3, 14, 2), (16, 16, 3, 3)],
)
def test_a_ragged_batch_is_softmax_attention(
    any_path: str, size: int, block_size: int, heads: int, key_heads: int
) -> None:
    lengths = [1, 15, 16, 17, 63, 64, 65, 200]
    batch = Sequences.random(lengths, heads, key_heads, size, block_size)
    # A whole prompt, one token, the end of a prompt, in turn.
    chunks = [(s, (0, n - 1, n // 2)[s % 3], n) for s, n in enumerate(lengths)]
    for chunk, actual in zip(chunks, batch.attend(chunks), strict=True):
        assert_close(actual, batch.expected(*chunk))


def test_a_long_context_is_accurate(native: str) -> None:
    length = 16_384
    batch = Sequences.random([length], heads=7, key_heads=1)
    assert_close(batch.attend([(0, length - 3, length)])[0], batch.expected(0, length - 3, length))


@pytest.mark.parametrize("factor", [30.0, 1e4])
def test_large_scores_do_not_overflow(any_path: str, factor: float) -> None:
    batch = Sequences.random([150], heads=2, key_heads=1)
    batch.qs[0] *= factor
    actual = batch.whole(0)
    # The rounding of a score of this size moves its weight; all weights stay a convex combination.
    torch.testing.assert_close(actual.double(), batch.expected(0, 0, 150), rtol=0, atol=factor * 1e-5)
    assert actual.abs().max() <= batch.vs[0].abs().max()


@pytest.mark.parametrize(("size", "block_size"), [(64, 16), (20, 3)])
def test_alone_and_in_company_are_equal(native: str, size: int, block_size: int) -> None:
    lengths = [200, 1, 65, 1100, 64]
    batch = Sequences.random(lengths, size=size, block_size=block_size)
    chunks = [(0, 0, 200), (1, 0, 1), (2, 64, 65), (3, 1080, 1100), (4, 10, 64)]
    for chunk, together in zip(chunks, batch.attend(chunks), strict=True):
        assert torch.equal(together, batch.attend([chunk])[0])


@pytest.mark.parametrize(("heads", "key_heads"), [(2, 2), (14, 2)])
def test_chunks_of_any_size_are_equal(native: str, heads: int, key_heads: int) -> None:
    length = 1100  # past the first partition
    batch = Sequences.random([length], heads, key_heads, size=16)
    whole = batch.whole(0)
    for chunk in (1, 7, 64, 100, 512):
        step = 13 if chunk == 1 else chunk
        for start in range(0, length, step):
            end = min(start + chunk, length)
            assert torch.equal(batch.attend([(0, start, end)])[0], whole[start:end])


@settings(max_examples=20, deadline=None)
@given(cuts=st.sets(st.integers(1, 149)), block_size=st.sampled_from([1, 3, 16, 32, 48]), seed=st.integers(0, 99))
def test_cuts_and_blocks_do_not_matter(cuts: set[int], block_size: int, seed: int) -> None:
    if library() is None:
        pytest.skip("no native kernels")
    batch = Sequences.random([150], heads=6, key_heads=2, size=16, seed=seed)
    moved = batch.moved(block_size, seed + 1)
    edges = [0, *sorted(cuts), 150]
    parts = [moved.attend([(0, *edge)])[0] for edge in pairwise(edges)]
    assert torch.equal(torch.cat(parts), batch.whole(0))


def test_the_future_does_not_matter(native: str) -> None:
    batch = Sequences.random([100], heads=4)
    before = batch.whole(0)
    batch.ks[0][70:] = math.inf
    batch.vs[0][70:] = math.nan
    after = batch.moved(16, 0).whole(0)
    assert torch.equal(before[:70], after[:70])
    assert not after[70:].isfinite().any()


@pytest.mark.parametrize("chunks", [[(0, 0, 300), (1, 0, 90)], [(0, 2499, 2500)], [(0, 2300, 2400)]])
def test_one_and_more_threads_are_equal(native: str, chunks: list[tuple[int, int, int]]) -> None:
    batch = Sequences.random([2500, 90], heads=7, key_heads=1)
    before = torch.get_num_threads()
    outs = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            outs.append(torch.cat(batch.attend(chunks)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


def test_native_agrees_with_the_reference(native: str) -> None:
    batch = Sequences.random([70, 33, 129])
    q, starts = torch.cat(batch.qs), torch.tensor([0, 70, 103, 232], dtype=torch.int32)
    arguments = (q, batch.keys, batch.values, batch.tables, starts, starts.diff())
    expected = attention.paged_attention_reference(*arguments)
    torch.testing.assert_close(attention.paged_attention(*arguments), expected, rtol=0, atol=FLOAT32)


def test_written_is_what_the_reference_writes(native: str) -> None:
    k = torch.randn(90, 5, 20)[:, 1:3]  # tokens that lie apart
    v = torch.randn(2, 90, 20).transpose(0, 1)  # and heads, too
    slots = torch.randperm(40 * 3)[:90]
    caches = [(torch.zeros(40, 2, 20, 3), torch.zeros(40, 2, 3, 20)) for _ in range(2)]
    attention.write(*caches[0], slots, k, v)
    attention.write_reference(*caches[1], slots, k, v)
    for actual, expected in zip(*caches, strict=True):
        assert torch.equal(actual, expected)


def test_rows_may_lie_apart(any_path: str) -> None:
    """q, k and v as parts of one fused projection."""
    q, k, v = torch.randn(40, 8, 16).split([4, 2, 2], dim=1)
    generator = torch.Generator().manual_seed(0)
    apart = Sequences.stored([q], [k], [v], 16, generator)
    starts, lengths = torch.tensor([0, 40], dtype=torch.int32), torch.tensor([40], dtype=torch.int32)
    actual = attention.paged_attention(q, apart.keys, apart.values, apart.tables, starts, lengths)
    assert actual.is_contiguous()
    assert_close(actual, apart.expected(0, 0, 40))


def test_an_empty_batch_and_a_sequence_without_queries(any_path: str) -> None:
    batch = Sequences.random([20, 30], heads=4)
    empty = torch.zeros(1, dtype=torch.int32)
    nothing = attention.paged_attention(batch.qs[0][:0], batch.keys, batch.values, batch.tables[:0], empty, empty[:0])
    assert nothing.shape == (0, 4, 64)
    idle, busy = batch.attend([(0, 20, 20), (1, 3, 30)])
    assert len(idle) == 0
    assert_close(busy, batch.expected(1, 3, 30))
    attention.write(batch.keys, batch.values, torch.empty(0, dtype=torch.long), batch.ks[0][:0], batch.vs[0][:0])


@pytest.mark.parametrize("block", [-1, 10**6])
def test_a_block_that_is_not_there_is_refused(any_path: str, block: int) -> None:
    batch = Sequences.random([20], heads=4)
    batch.tables[0, 1] = block
    if any_path == "torch" and block < 0:
        pytest.skip("torch counts from the end")
    with pytest.raises(IndexError):
        batch.whole(0)


@pytest.mark.parametrize("slot", [-1000, 10**6])
def test_a_slot_that_is_not_there_is_refused(any_path: str, slot: int) -> None:
    batch = Sequences.random([20], heads=4)
    with pytest.raises(IndexError):
        attention.write(batch.keys, batch.values, torch.tensor([slot]), batch.ks[0][:1], batch.vs[0][:1])


def test_other_types_are_served_by_torch() -> None:
    batch = Sequences.random([40], heads=4)
    starts, lengths = torch.tensor([0, 40], dtype=torch.int32), torch.tensor([40], dtype=torch.int32)
    actual = attention.paged_attention(
        batch.qs[0].double(), batch.keys.double(), batch.values.double(), batch.tables, starts, lengths
    )
    torch.testing.assert_close(actual, batch.expected(0, 0, 40))
