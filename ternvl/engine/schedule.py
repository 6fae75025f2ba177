"""A step as a value: which sequences compute which tokens, on which blocks, after which image tiles.

`Plan` builds it; the scheduler decides the order in which sequences are offered to the plan.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain

from ternvl.engine.cache.tiles import TileCache
from ternvl.engine.sequence import Sequence
from ternvl.sampling.speculation import NO_DRAFT, Draft
from ternvl.types import ImageSpan


@dataclass(frozen=True, slots=True)
class Reuse:
    """The part of an admitted sequence that is in the cache already."""

    shared_blocks: tuple[int, ...] = ()
    """Full blocks from the prefix cache or from a sibling: the first blocks of the sequence."""
    num_tokens: int = 0
    """Number of tokens whose keys and values are in the cache."""
    copied_block: int | None = None
    """Block of a sibling with the tokens after the shared blocks. It is copied, since both will write to it."""


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """One sequence's share of a step. With 0 tokens, the sequence keeps its blocks and waits for an image."""

    sequence: Sequence
    start: int
    """Position of the first token to compute; the tokens before it are in the cache."""
    num_tokens: int
    """Number of tokens to compute, including the draft's."""
    block_table: tuple[int, ...]
    """Blocks for all tokens of the sequence and of the draft."""
    new_blocks: tuple[int, ...]
    """The last blocks of the table, which the sequence does not have yet."""
    reuse: Reuse
    """What an admitted sequence takes from the cache."""
    samples: bool
    """Whether the step draws the sequence's next token."""
    scored: range = range(0)
    """Tokens of the prompt whose log probabilities are wanted and follow from this chunk: each from the row before."""
    draft: Draft = NO_DRAFT
    """Guessed tokens after the sequence's own, computed on trial if it samples. Each accepted one gives a token."""

    @property
    def stop(self) -> int:
        return self.start + self.num_tokens

    @property
    def decodes(self) -> bool:
        """Whether the chunk computes only the token that was drawn last."""
        return self.num_own_tokens == 1 and self.start >= self.sequence.request.prompt.num_tokens

    @property
    def num_own_tokens(self) -> int:
        """Number of tokens to compute without those of the draft."""
        return self.num_tokens - len(self.draft)

    @property
    def token_ids(self) -> list[int]:
        """The tokens to compute, the sequence's own and then the draft's."""
        own = self.sequence.token_ids[self.start : self.start + self.num_own_tokens]
        return [*own, *self.draft.token_ids]

    @property
    def num_sampled_rows(self) -> int:
        """Number of last rows whose logits are needed: the row of the last own token and the rows of the draft."""
        return 1 + len(self.draft) if self.samples else 0

    def with_draft(self, draft: Draft, new_blocks: tuple[int, ...]) -> Chunk:
        """Return this chunk with a draft, and with new blocks for tokens that do not fit the chunk's own."""
        return replace(
            self,
            num_tokens=self.num_tokens + len(draft),
            block_table=(*self.block_table, *new_blocks),
            new_blocks=(*self.new_blocks, *new_blocks),
            draft=draft,
        )


@dataclass(frozen=True, slots=True, eq=False)
class TileWork:
    """A tile to encode, before the tokens of the same step are computed."""

    sequence: Sequence
    """A sequence whose prompt has the tile's pixels."""
    row: int
    """The tile's row of `Prompt.pixel_values`."""
    key: bytes
    """What stands for the tile in the cache."""


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """The plan of one step."""

    chunks: tuple[Chunk, ...] = ()
    tiles: tuple[TileWork, ...] = ()
    stored: Mapping[bytes, memoryview] = field(default_factory=dict)
    """Features that were read from disk, by tile. They take nothing of the step's budget."""
    preempted: tuple[Sequence, ...] = ()
    """Sequences that lose their blocks and will be computed again from the start."""

    @property
    def sampling(self) -> list[Chunk]:
        """The chunks that draw tokens, in order."""
        return [chunk for chunk in self.chunks if chunk.samples]

    @property
    def scoring(self) -> list[Chunk]:
        """The chunks that score tokens of their prompts, in order."""
        return [chunk for chunk in self.chunks if chunk.scored]

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Time the encoding of the step's tiles in this context, for all sequences that wait for one of them."""
        began = time.perf_counter()
        yield
        ended = time.perf_counter()
        keys = {work.key for work in self.tiles}
        for chunk in self.chunks if keys else ():
            waits_for = (image.tile_keys for image in chunk.sequence.images_after(chunk.start))
            if not keys.isdisjoint(chain.from_iterable(waits_for)):
                chunk.sequence.timing.encoded(began, ended)


class Plan:
    """A step while it is planned: its remaining budget of tokens and tiles, and the tiles that it encodes."""

    def __init__(self, num_tokens: int, num_tiles: int, cache: TileCache) -> None:
        """`num_tokens` and `num_tiles` are the budget of the step."""
        self.num_tokens = num_tokens
        self.num_tiles = num_tiles
        self.tiles: dict[bytes, TileWork] = {}
        self.stored: dict[bytes, memoryview] = {}
        self._cache = cache

    def spend(self, sequence: Sequence, new_blocks: tuple[int, ...], reuse: Reuse | None = None) -> Chunk:
        """Return a chunk with as many tokens of the sequence as the remaining budget allows.

        Tokens of an image wait until its tiles are encoded; tiles do not wait for tokens.
        """
        reuse = reuse or Reuse(num_tokens=sequence.num_computed)
        start = reuse.num_tokens
        for image in sequence.images_after(start):
            self._encode(sequence, image, start)
        num_tokens = min(self.num_tokens, self._num_ready(sequence, start) - start)
        self.num_tokens -= num_tokens
        return Chunk(
            sequence=sequence,
            start=start,
            num_tokens=num_tokens,
            block_table=(*sequence.block_table, *reuse.shared_blocks, *new_blocks),
            new_blocks=new_blocks,
            reuse=reuse,
            samples=0 < num_tokens == sequence.num_tokens - start,
            scored=sequence.scored_before(start + num_tokens),
        )

    def _encode(self, sequence: Sequence, image: ImageSpan, start: int) -> None:
        """Plan the tiles whose tokens are computed from `start` on: those on disk, and others as the budget allows."""
        keys = image.tile_keys
        for tile in image.tiles_after(start):
            key = keys[tile]
            if self._is_ready(key):
                continue
            if key in self._cache.stored:
                self.stored[key] = self._cache.stored[key]
            elif self.num_tiles:
                self.tiles[key] = TileWork(sequence, image.first_tile + tile, key)
                self.num_tiles -= 1

    def _is_ready(self, key: bytes) -> bool:
        return key in self.tiles or key in self.stored or self._cache.is_encoded(key)

    def _num_ready(self, sequence: Sequence, start: int) -> int:
        """Return the number of leading tokens whose embeddings are available in this step."""
        for image in sequence.images_after(start):
            keys = image.tile_keys
            for tile in image.tiles_after(start):
                if not self._is_ready(keys[tile]):
                    return max(start, image.start + tile * (image.num_tokens // image.num_tiles))
        return sequence.num_tokens
