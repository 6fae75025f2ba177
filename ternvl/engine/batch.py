"""Builds a batch, a schedule as flat tensors. The rows of a batch are the tokens of its chunks, one after another.

Shapes: T tokens, S sequences, R rows whose logits are needed, W blocks of the longest table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from ternvl.engine.schedule import Chunk, Schedule
from ternvl.lora.bank import Span


@dataclass(frozen=True, slots=True)
class TileRows:
    """Rows of a batch whose embeddings are a tile's features."""

    key: bytes
    """What stands for the tile in the cache."""
    start: int
    """First row of the batch."""
    first: int
    """First row of the tile's features."""
    count: int


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """The input of one run of the model."""

    token_ids: Tensor
    """[T] int64."""
    positions: Tensor
    """[T] int64, position of each token in its sequence."""
    slots: Tensor
    """[T] int64, slot of each token's key and value in the cache: block * block size + offset."""
    copies: Tensor
    """[2, n] int64: blocks to copy from and to before anything is computed."""
    block_tables: Tensor
    """[S, W] int32, padded with 0."""
    query_starts: Tensor
    """[S + 1] int32: the first row of each sequence, then T."""
    lengths: Tensor
    """[S] int32: the number of tokens that the last row of each sequence attends to."""
    tiles: tuple[TileRows, ...]
    scored: tuple[tuple[Chunk, int], ...]
    """The chunks of `Schedule.scoring`, each with its first row [T]."""
    sampled_rows: Tensor
    """[R] int64: rows whose logits are needed, `Chunk.num_sampled_rows` for each chunk of `Schedule.sampling`."""
    adapters: tuple[Span, ...]
    """Spans of the rows [T] that have an adapter."""
    sampled_adapters: tuple[Span, ...]
    """Spans of the rows [R] of logits that have an adapter."""


def build(schedule: Schedule, *, block_size: int, device: torch.device) -> Batch:
    """Build the batch of a schedule. T is 0 if the schedule computes no tokens."""
    chunks = [chunk for chunk in schedule.chunks if chunk.num_tokens]
    starts = [0]
    for chunk in chunks:
        starts.append(starts[-1] + chunk.num_tokens)
    copies = [
        (chunk.reuse.copied_block, chunk.new_blocks[0]) for chunk in chunks if chunk.reuse.copied_block is not None
    ]
    used = [list(chunk.block_table[: -(-chunk.stop // block_size)]) for chunk in chunks]
    width = max(map(len, used), default=0)

    def tensor(values: list[int] | list[list[int]], dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    return Batch(
        token_ids=tensor([token_id for chunk in chunks for token_id in chunk.token_ids]),
        positions=tensor([position for chunk in chunks for position in range(chunk.start, chunk.stop)]),
        slots=tensor([slot for chunk in chunks for slot in _slots(chunk, block_size)]),
        copies=tensor([list(pair) for pair in copies]).view(-1, 2).T,
        block_tables=tensor([table + [0] * (width - len(table)) for table in used], torch.int32).view(len(used), width),
        query_starts=tensor(starts, torch.int32),
        lengths=tensor([chunk.stop for chunk in chunks], torch.int32),
        tiles=tuple(rows for chunk, start in zip(chunks, starts, strict=False) for rows in _tile_rows(chunk, start)),
        scored=tuple((chunk, start) for chunk, start in zip(chunks, starts, strict=False) if chunk.scored),
        sampled_rows=tensor(
            [row for chunk, stop in zip(chunks, starts[1:], strict=True) for row in _sampled_rows(chunk, stop)]
        ),
        adapters=_spans(chunks, [chunk.num_tokens for chunk in chunks]),
        sampled_adapters=_spans(chunks, [chunk.num_sampled_rows for chunk in chunks]),
    )


def _spans(chunks: Sequence[Chunk], counts: Sequence[int]) -> tuple[Span, ...]:
    """Return the spans of rows that have an adapter, given counts[i] rows for chunk i."""
    stops = list(accumulate(counts))
    return tuple(
        (chunk.sequence.request.adapter, stop - count, stop)
        for chunk, count, stop in zip(chunks, counts, stops, strict=True)
        if count and chunk.sequence.request.adapter is not None
    )


def _slots(chunk: Chunk, block_size: int) -> Iterator[int]:
    for position in range(chunk.start, chunk.stop):
        yield chunk.block_table[position // block_size] * block_size + position % block_size


def _sampled_rows(chunk: Chunk, stop: int) -> range:
    return range(stop - chunk.num_sampled_rows, stop)


def _tile_rows(chunk: Chunk, row: int) -> Iterator[TileRows]:
    """Yield the rows of a chunk that are image tokens; `row` is the first row of the chunk."""
    for image in chunk.sequence.request.prompt.images:
        if image.start >= chunk.stop or image.stop <= chunk.start:
            continue
        size, keys = image.num_tokens // image.num_tiles, image.tile_keys
        for tile in image.tiles_after(chunk.start):
            first = image.start + tile * size
            start, stop = max(chunk.start, first), min(chunk.stop, first + size)
            if start >= stop:
                break
            yield TileRows(keys[tile], row + start - chunk.start, start - first, stop - start)
