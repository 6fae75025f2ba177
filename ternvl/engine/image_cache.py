"""Which images' features are known, and who needs them. The tensors are the runner's.

An image is known by its digest (pixels and number of tiles), so one that several requests hold is encoded once, also
while it is being encoded. Images that nobody needs any more are kept, up to a limit of bytes, and forgotten in the
order of their last use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from ternvl.types import ImageSpan


@dataclass(slots=True)
class _Entry:
    num_tiles: int
    num_encoded: int = 0
    num_users: int = 0


class ImageCache:
    """All images that have features, or will have them."""

    def __init__(self, max_bytes: int, tile_bytes: int) -> None:
        """`max_bytes` is kept of images that nobody needs; a tile's features take `tile_bytes`."""
        self._max_tiles = max_bytes // tile_bytes
        self._entries: dict[bytes, _Entry] = {}  # in order of last use
        self.num_lookups = self.num_hits = 0
        self.num_held = 0
        """Images that some sequence needs. A number, since other threads ask for it while entries come and go."""

    @property
    def digests(self) -> set[bytes]:
        """Images that are kept."""
        return set(self._entries)

    def num_encoded(self, digest: bytes) -> int:
        """How many leading tiles of an image have their features."""
        entry = self._entries.get(digest)
        return entry.num_encoded if entry else 0

    def acquire(self, image: ImageSpan) -> None:
        """Keep an image until it is released."""
        self.num_lookups += 1
        self.num_hits += image.digest in self._entries
        entry = self._entries.pop(image.digest, None) or _Entry(image.num_tiles)
        entry.num_users += 1
        self.num_held += entry.num_users == 1
        self._entries[image.digest] = entry

    def advance(self, digest: bytes, num_tiles: int) -> None:
        """Further tiles of an image have been encoded."""
        self._entries[digest].num_encoded += num_tiles

    def release(self, digest: bytes) -> None:
        """One sequence less needs an image."""
        entry = self._entries[digest]
        entry.num_users -= 1
        if not entry.num_users:
            self.num_held -= 1
            self._entries[digest] = self._entries.pop(digest)
            self._shrink()

    def _shrink(self) -> None:
        unused = [digest for digest, entry in self._entries.items() if not entry.num_users]
        excess = sum(self._entries[digest].num_tiles for digest in unused) - self._max_tiles
        for digest in unused:
            if excess <= 0:
                return
            excess -= self._entries.pop(digest).num_tiles

    def check_integrity(self, held: Iterable[bytes]) -> None:
        """Assert that the users are those who hold the given images."""
        users = Counter(held)
        counted = {digest: entry.num_users for digest, entry in self._entries.items() if entry.num_users}
        assert counted == users, "images have wrong counts of users"
        assert self.num_held == len(users)
        assert all(0 <= entry.num_encoded <= entry.num_tiles for entry in self._entries.values())
