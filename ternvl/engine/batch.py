"""A schedule as flat tensors.

Rows of a batch are tokens. Sequences that compute one token stand first, those of like length together, so that they
attend as one padded group; longer chunks follow, each a group of its own.

Shapes: T tokens, S sequences, B blocks a table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from ternvl.engine.scheduler import Chunk, Schedule
from ternvl.model.kv_cache import Group


@dataclass(frozen=True, slots=True)
class ImageRows:
    """Rows of a batch whose embeddings are an image's features."""

    request_id: str
    start: int
    """First row of the batch."""
    first: int
    """First of the request's features, counted in tokens over all its tiles."""
    count: int


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What the model is run on."""

    token_ids: Tensor
    """[T]"""
    positions: Tensor
    """[T], within each token's own sequence."""
    slots: Tensor
    """[T], where each token's key and value go."""
    new_blocks: Tensor
    """Blocks that are used for the first time."""
    groups: tuple[Group, ...]
    images: tuple[ImageRows, ...]
    sampled_rows: Tensor
    """Rows whose logits are wanted, in the order of `Schedule.sampling`."""


def build(schedule: Schedule, *, block_size: int, device: torch.device) -> Batch:
    """The batch of a schedule. T is 0 where it computes nothing."""
    chunks = sorted((chunk for chunk in schedule.chunks if chunk.num_tokens), key=_kind)
    starts, row = {}, 0
    for chunk in chunks:
        starts[chunk] = row
        row += chunk.num_tokens

    def tensor(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    return Batch(
        token_ids=tensor([i for chunk in chunks for i in chunk.sequence.token_ids[chunk.start : chunk.stop]]),
        positions=tensor([position for chunk in chunks for position in range(chunk.start, chunk.stop)]),
        slots=tensor([slot for chunk in chunks for slot in _slots(chunk, block_size)]),
        new_blocks=tensor([block for chunk in schedule.chunks for block in chunk.new_blocks]),
        groups=tuple(_group(list(alike), starts, block_size, device) for _, alike in groupby(chunks, key=_group_key)),
        images=tuple(rows for chunk in chunks for rows in _image_rows(chunk, starts[chunk])),
        sampled_rows=tensor([starts[chunk] + chunk.num_tokens - 1 for chunk in schedule.sampling]),
    )


def _kind(chunk: Chunk) -> tuple[bool, int]:
    """Sorts single tokens first, by their length to a factor of two: padding then at most doubles the work."""
    return chunk.num_tokens > 1, 0 if chunk.num_tokens > 1 else chunk.stop.bit_length()


def _group_key(chunk: Chunk) -> tuple[bool, int]:
    return (True, id(chunk)) if chunk.num_tokens > 1 else _kind(chunk)


def _slots(chunk: Chunk, block_size: int) -> Iterator[int]:
    table = chunk.block_table
    for position in range(chunk.start, chunk.stop):
        yield table[position // block_size] * block_size + position % block_size


def _group(chunks: list[Chunk], starts: dict[Chunk, int], block_size: int, device: torch.device) -> Group:
    tables = [chunk.block_table[: -(-chunk.stop // block_size)] for chunk in chunks]
    width = max(map(len, tables))
    padded = [table + table[-1:] * (width - len(table)) for table in tables]
    start = starts[chunks[0]]
    return Group(
        rows=slice(start, start + sum(chunk.num_tokens for chunk in chunks)),
        block_tables=torch.tensor(padded, dtype=torch.int64, device=device),
        lengths=torch.tensor([chunk.stop for chunk in chunks], dtype=torch.int64, device=device),
        num_queries=chunks[0].num_tokens,
        max_length=max(chunk.stop for chunk in chunks),
    )


def _image_rows(chunk: Chunk, row: int) -> Iterator[ImageRows]:
    """The parts of a chunk that stand for images; `row` is the chunk's first."""
    for image in chunk.sequence.request.prompt.images:
        start, stop = max(chunk.start, image.start), min(chunk.stop, image.stop)
        if start < stop:
            first_feature = image.first_tile * (image.num_tokens // image.num_tiles)
            yield ImageRows(
                request_id=chunk.sequence.id,
                start=row + start - chunk.start,
                first=first_feature + start - image.start,
                count=stop - start,
            )
