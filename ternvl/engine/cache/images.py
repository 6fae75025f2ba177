"""Tracks which images have features, and how many sequences use them. The runner owns the tensors.

An image is identified by its digest (pixels and number of tiles), so an image of several requests is encoded once, also
if it is still being encoded when the second request arrives. Images that no sequence uses are kept up to a limit of
bytes, and dropped in the order of their last use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from ternvl.types import ImageSpan


@dataclass(slots=True)
class CachedImage:
    """The state of one image: how many of its tiles are encoded, and how many sequences use it."""

    num_tiles: int
    num_encoded: int = 0
    num_users: int = 0


class ImageCache:
    """All images that have features, or will have them."""

    def __init__(self, max_bytes: int, tile_bytes: int) -> None:
        """`max_bytes` limits the features of unused images; the features of one tile take `tile_bytes`."""
        self._max_tiles = max_bytes // tile_bytes
        self._images: dict[bytes, CachedImage] = {}  # by digest, in order of last use
        self.num_lookups = self.num_hits = 0
        self.num_held = 0
        """Number of images in use. It is a counter of its own because other threads read it while images change."""

    @property
    def num_cached(self) -> int:
        """The number of images that have features, or will have them. Any thread may ask."""
        return len(self._images)

    @property
    def digests(self) -> set[bytes]:
        """Digests of the images in the cache."""
        return set(self._images)

    def num_encoded(self, digest: bytes) -> int:
        """Return the number of leading tiles of an image whose features are computed."""
        cached = self._images.get(digest)
        return cached.num_encoded if cached else 0

    def acquire(self, image: ImageSpan) -> None:
        """Keep an image for one more sequence, until it is released."""
        self.num_lookups += 1
        self.num_hits += image.digest in self._images
        cached = self._images.pop(image.digest, None) or CachedImage(image.num_tiles)
        cached.num_users += 1
        self.num_held += cached.num_users == 1
        self._images[image.digest] = cached

    def advance(self, digest: bytes, num_tiles: int) -> None:
        """Record that `num_tiles` further tiles of an image have been encoded."""
        self._images[digest].num_encoded += num_tiles

    def release(self, digest: bytes) -> None:
        """Record that one sequence less uses an image."""
        cached = self._images[digest]
        cached.num_users -= 1
        if not cached.num_users:
            self.num_held -= 1
            self._images[digest] = self._images.pop(digest)
            self._shrink()

    def _shrink(self) -> None:
        unused = [digest for digest, cached in self._images.items() if not cached.num_users]
        excess = sum(self._images[digest].num_tiles for digest in unused) - self._max_tiles
        for digest in unused:
            if excess <= 0:
                return
            excess -= self._images.pop(digest).num_tiles

    def check_integrity(self, held: Iterable[bytes]) -> None:
        """Assert that the counts match `held`, which has a digest for each use by a sequence."""
        users = Counter(held)
        counted = {digest: cached.num_users for digest, cached in self._images.items() if cached.num_users}
        assert counted == users, "images have wrong counts of users"
        assert self.num_held == len(users)
        assert all(0 <= cached.num_encoded <= cached.num_tiles for cached in self._images.values())
