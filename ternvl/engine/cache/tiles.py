"""Tracks which image tiles have features, and how many sequences use them. The runner owns the tensors.

A tile is identified by the digest of its pixels, whatever image it is in. So equal tiles of one image, of several
images and of several requests are encoded once, also if a tile is still being encoded when it is needed again. Tiles
that no sequence uses are kept up to a limit of bytes, and dropped in the order of their last use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import NamedTuple

from ternvl.types import ImageSpan


class TileUse(NamedTuple):
    """The tiles of an image that a sequence uses: all from `first` on."""

    image: ImageSpan
    first: int = 0

    @property
    def keys(self) -> tuple[bytes, ...]:
        """What stands for the tiles in the cache."""
        return self.image.tile_keys[self.first :]


@dataclass(slots=True)
class CachedTile:
    """The state of one tile: whether it has features, and how often sequences use it."""

    is_encoded: bool = False
    num_uses: int = 0


class TileCache:
    """All tiles that have features, or will have them."""

    def __init__(self, max_bytes: int, tile_bytes: int) -> None:
        """`max_bytes` limits the features of unused tiles; those of one tile take `tile_bytes`."""
        self._most_unused = max_bytes // tile_bytes
        self._tiles: dict[bytes, CachedTile] = {}
        self._unused: dict[bytes, None] = {}  # in order of last use
        self._dropped: list[bytes] = []
        self._held_images: Counter[bytes] = Counter()
        self.stored: Mapping[bytes, memoryview] = {}
        """Features that were read from disk for the next step, by tile."""
        self._num_image_lookups = self._num_image_hits = 0
        self._num_lookups = self._num_hits = self._num_stored_hits = 0
        self.num_held_images = 0
        """Number of images in use. It is a counter of its own because other threads read it while images change."""

    @property
    def num_cached(self) -> int:
        """The number of tiles that have features, or will have them. Any thread may ask."""
        return len(self._tiles)

    @property
    def keys(self) -> AbstractSet[bytes]:
        """The tiles in the cache."""
        return self._tiles.keys()

    def is_encoded(self, key: bytes) -> bool:
        """Whether a tile has features. Any thread may ask."""
        tile = self._tiles.get(key)
        return tile is not None and tile.is_encoded

    def acquire(self, use: TileUse) -> None:
        """Keep tiles for one more sequence, until they are released."""
        num_hits = sum(map(self._acquire, use.keys))
        self._num_lookups += len(use.keys)
        self._num_hits += num_hits
        self._num_image_lookups += 1
        self._num_image_hits += num_hits == len(use.keys)
        self._held_images[use.image.digest] += 1
        self.num_held_images += self._held_images[use.image.digest] == 1

    def _acquire(self, key: bytes) -> bool:
        """Count one more use of a tile, and return whether the tile was known."""
        tile, is_known = self._tiles.get(key), key in self._tiles
        if tile is None:
            tile = self._tiles[key] = CachedTile()
        elif not tile.num_uses:
            del self._unused[key]
        tile.num_uses += 1
        return is_known

    def finish(self, encoded: Iterable[bytes], stored: Collection[bytes] = ()) -> None:
        """Record that tiles have got features, by being encoded or by being read from disk."""
        for key in (*encoded, *stored):
            self._tiles[key].is_encoded = True
        self._num_stored_hits += len(stored)

    def release(self, use: TileUse) -> None:
        """Record that one sequence less uses tiles."""
        for key in use.keys:
            self._release(key)
        while len(self._unused) > self._most_unused:
            oldest = next(iter(self._unused))
            del self._unused[oldest]
            self._drop(oldest)
        digest = use.image.digest
        self._held_images[digest] -= 1
        if not self._held_images[digest]:
            del self._held_images[digest]
            self.num_held_images -= 1

    def _release(self, key: bytes) -> None:
        tile = self._tiles[key]
        tile.num_uses -= 1
        if not tile.num_uses and tile.is_encoded:
            self._unused[key] = None
        elif not tile.num_uses:
            self._drop(key)

    def _drop(self, key: bytes) -> None:
        del self._tiles[key]
        self._dropped.append(key)

    def take_dropped(self) -> list[bytes]:
        """Return the tiles that were dropped since the last call, and are not in the cache again."""
        dropped, self._dropped = self._dropped, []
        return [key for key in dropped if key not in self._tiles]

    def counts(self) -> dict[str, int]:
        """Return the counters by the names of `EngineStats`. Any thread may ask."""
        return {
            "num_held_images": self.num_held_images,
            "num_image_lookups": self._num_image_lookups,
            "num_image_hits": self._num_image_hits,
            "num_tile_lookups": self._num_lookups,
            "num_tile_hits": self._num_hits,
            "num_stored_tile_hits": self._num_stored_hits,
        }

    def check_integrity(self, held: Iterable[TileUse]) -> None:
        """Assert that the counts match `held`, which has the uses by sequences."""
        uses = list(held)
        counted = {key: tile.num_uses for key, tile in self._tiles.items() if tile.num_uses}
        assert counted == Counter(key for use in uses for key in use.keys), "tiles have wrong counts of users"
        assert self._held_images == Counter(use.image.digest for use in uses), "images have wrong counts of users"
        assert self.num_held_images == len(self._held_images)
        assert self._unused.keys() == self._tiles.keys() - counted.keys()
        assert all(self._tiles[key].is_encoded for key in self._unused), "an unused tile has no features"
        assert len(self._unused) <= self._most_unused
