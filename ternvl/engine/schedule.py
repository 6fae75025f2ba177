"""A step as a value: who computes what, on which blocks, after which image tiles.

`Plan` makes it; the scheduler decides in which order sequences are offered to it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ternvl.engine.image_cache import ImageCache
from ternvl.engine.sequence import Sequence
from ternvl.sampling.speculation import NO_DRAFT, Draft
from ternvl.types import ImageSpan


@dataclass(frozen=True, slots=True)
class Reuse:
    """What a sequence that is let in need not compute."""

    shared_blocks: tuple[int, ...] = ()
    """Full blocks from the cache or from a sibling, the sequence's first."""
    num_tokens: int = 0
    """Tokens whose keys and values are there."""
    copied_block: int | None = None
    """Block of a sibling that holds the tokens after the shared blocks: copied, since both will write on."""


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """One sequence's share of a step. Its count may be 0: then it waits for an image with its blocks kept."""

    sequence: Sequence
    start: int
    """First token to compute; those before it are in the cache."""
    num_tokens: int
    """To compute, the draft's among them."""
    block_table: tuple[int, ...]
    """Blocks for all tokens the sequence has, and for the draft."""
    new_blocks: tuple[int, ...]
    """The last of them, which the sequence has not yet."""
    reuse: Reuse
    """What it takes over, where it is let in."""
    samples: bool
    """Whether the step brings the sequence its next token."""
    draft: Draft = NO_DRAFT
    """Tokens after the sequence's own that are computed on trial, where it samples: each brings a token if it holds."""

    @property
    def stop(self) -> int:
        return self.start + self.num_tokens

    @property
    def num_own_tokens(self) -> int:
        """Of the tokens to compute, those that the sequence has."""
        return self.num_tokens - len(self.draft)

    @property
    def token_ids(self) -> list[int]:
        """The tokens to compute."""
        own = self.sequence.token_ids[self.start : self.start + self.num_own_tokens]
        return [*own, *self.draft.token_ids]

    @property
    def num_sampled_rows(self) -> int:
        """Its last rows, whose logits are wanted: that of its last own token and those of the draft."""
        return 1 + len(self.draft) if self.samples else 0

    def with_draft(self, draft: Draft, new_blocks: tuple[int, ...]) -> Chunk:
        """This chunk with a draft, and blocks for what of it does not fit those the chunk has."""
        return replace(
            self,
            num_tokens=self.num_tokens + len(draft),
            block_table=(*self.block_table, *new_blocks),
            new_blocks=(*self.new_blocks, *new_blocks),
            draft=draft,
        )


@dataclass(frozen=True, slots=True, eq=False)
class TileWork:
    """Tiles of one image to encode, before the tokens of the same step are computed."""

    sequence: Sequence
    """One that brings the image's pixels."""
    image: ImageSpan
    first: int
    """First tile, counted within the image."""
    count: int


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """What one step does."""

    chunks: tuple[Chunk, ...] = ()
    tiles: tuple[TileWork, ...] = ()
    preempted: tuple[Sequence, ...] = ()
    """Sequences that lose their blocks and will be computed again."""

    @property
    def sampling(self) -> list[Chunk]:
        """The chunks that bring a token, in order."""
        return [chunk for chunk in self.chunks if chunk.samples]


class Plan:
    """A step in the making: what is left of its tokens and tiles, and the tiles that it encodes."""

    def __init__(self, num_tokens: int, num_tiles: int, images: ImageCache) -> None:
        self.num_tokens = num_tokens
        self.num_tiles = num_tiles
        self.tiles: dict[bytes, TileWork] = {}
        self._images = images

    def spend(self, sequence: Sequence, new_blocks: tuple[int, ...], reuse: Reuse | None = None) -> Chunk:
        """As much of the sequence as there is left. Tokens of an image wait for its tiles; tiles wait for no token."""
        reuse = reuse or Reuse(num_tokens=sequence.num_computed)
        start = reuse.num_tokens
        for image in sequence.images_after(start):
            self._encode(sequence, image)
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
        )

    def _encode(self, sequence: Sequence, image: ImageSpan) -> None:
        """Encode what is left of an image, as far as the tiles go; an image that is planned already took all it can."""
        first = self._images.num_encoded(image.digest)
        count = min(self.num_tiles, image.num_tiles - first)
        if count and image.digest not in self.tiles:
            self.tiles[image.digest] = TileWork(sequence, image, first, count)
            self.num_tiles -= count

    def _num_ready(self, sequence: Sequence, start: int) -> int:
        """How many leading tokens have their embeddings in this step."""
        for image in sequence.images_after(start):
            work = self.tiles.get(image.digest)
            encoded = work.first + work.count if work else self._images.num_encoded(image.digest)
            if encoded < image.num_tiles:
                return max(start, image.start + encoded * (image.num_tokens // image.num_tiles))
        return sequence.num_tokens
