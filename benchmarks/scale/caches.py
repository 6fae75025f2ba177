"""What a replica keeps: prefixes of prompts in its KV cache, features of images, and adapters.

Each evicts what has been unused for longest, as the engine does (`ternvl/engine/cache`, `ternvl/lora/pool.py`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

Chain = Sequence[tuple[Hashable, int]]
"""A prompt as segments in order: a key that stands for all tokens up to the segment's end, and the segment's tokens."""


@dataclass(slots=True)
class Lease:
    """The blocks that a running request has: shared ones under their keys, and those of its own."""

    keys: list[Hashable] = field(default_factory=list)
    num_own: int = 0
    num_found: int = 0
    """The tokens that were found in the cache."""


class PrefixCache:
    """The blocks of a KV cache. A segment is found or evicted as a whole; only whole blocks of tokens are kept."""

    def __init__(self, num_blocks: int, block_size: int = 16) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        self.num_used = 0
        """Blocks of running requests."""
        self.num_tokens = self.num_found = 0
        """Tokens of prompts since the start, and those of them that were found."""
        self._kept: OrderedDict[Hashable, int] = OrderedDict()  # blocks of segments without users, by last use
        self._num_kept = 0
        self._held: dict[Hashable, list[int]] = {}  # blocks and users of segments that running requests use

    def blocks(self, chain: Chain) -> list[tuple[Hashable, int]]:
        """Return the whole blocks of each segment; a block that two segments share belongs to the second."""
        found, end = [], 0
        for key, tokens in chain:
            found.append((key, (end + tokens) // self.block_size - end // self.block_size))
            end += tokens
        return found

    def admit(self, chain: Chain, num_tokens: int) -> Lease | None:
        """Return the lease of a request with room for `num_tokens`; None if there is not enough."""
        size = sum(tokens for _, tokens in chain)
        keys, found, fresh, last = [], 0, 0, (size - 1) // self.block_size  # the last token is always computed
        for key, count in self.blocks(chain):
            held = self._held.get(key)
            if (held is None and key not in self._kept) or found + count > last:
                break
            keys.append(key)
            found, fresh = found + count, fresh + (count if held is None else 0)
        own = -(-num_tokens // self.block_size) - found
        if own + fresh > self.num_blocks - self.num_used:
            return None
        for key in keys:
            self._hold(key)
        self.num_used += own
        self._make_room()
        self.num_tokens += size
        self.num_found += found * self.block_size
        return Lease(keys, own, found * self.block_size)

    def publish(self, lease: Lease, chain: Chain) -> None:
        """Let others find the segments of a chain, which the request of the lease has computed by now."""
        for key, count in self.blocks(chain)[len(lease.keys) :]:
            if key in self._held or key in self._kept or count > lease.num_own:
                return  # computed twice at the same time: the second copy stays the request's own
            self._held[key] = [count, 1]
            lease.keys.append(key)
            lease.num_own -= count

    def release(self, lease: Lease) -> None:
        """End a lease. The last segments are the first to be evicted."""
        self.num_used -= lease.num_own
        for key in reversed(lease.keys):
            held = self._held[key]
            held[1] -= 1
            if not held[1]:
                del self._held[key]
                self._kept[key] = held[0]
                self._num_kept += held[0]
                self.num_used -= held[0]

    def _hold(self, key: Hashable) -> None:
        held = self._held.get(key)
        if held is None:
            count = self._kept.pop(key)
            self._num_kept -= count
            self.num_used += count
            self._held[key] = [count, 1]
        else:
            held[1] += 1

    def _make_room(self) -> None:
        while self._num_kept > self.num_blocks - self.num_used:
            self._num_kept -= self._kept.popitem(last=False)[1]


class ImageCache:
    """Features of images, by digest. Those that no request uses take at most `max_tiles`.

    No two images have a tile in common. Tiles are dropped one by one, so an image may have lost its first ones.
    """

    def __init__(self, max_tiles: int) -> None:
        self._max_tiles = max_tiles
        self._images: OrderedDict[Hashable, list[int]] = OrderedDict()  # tiles, encoded tiles, users; by last use
        self._num_unused = 0
        self.num_lookups = self.num_hits = 0

    def acquire(self, digest: Hashable, num_tiles: int) -> bool:
        """Keep an image for one more request; return whether all of it was there, or is being encoded."""
        image = self._images.get(digest)
        self.num_lookups += 1
        if image is None:
            self._images[digest] = [num_tiles, 0, 1]
            return False
        is_hit = image[2] > 0 or image[1] == image[0]
        self.num_hits += is_hit
        if not image[2]:
            self._num_unused -= image[1]
        image[2] += 1
        self._images.move_to_end(digest)
        return is_hit

    def num_encoded(self, digest: Hashable) -> int:
        """Return how many tiles of an image in use are encoded."""
        return self._images[digest][1]

    def encode(self, digest: Hashable, num_tiles: int) -> None:
        """Note that further tiles are encoded."""
        self._images[digest][1] += num_tiles

    def release(self, digest: Hashable) -> None:
        """One request less uses an image."""
        image = self._images[digest]
        image[2] -= 1
        if image[2]:
            return
        self._images.move_to_end(digest)
        self._num_unused += image[1]
        if self._num_unused > self._max_tiles or not image[1]:
            for old in [name for name, each in self._images.items() if not each[2]]:
                dropped = min(self._images[old][1], max(0, self._num_unused - self._max_tiles))
                self._images[old][1] -= dropped
                self._num_unused -= dropped
                if not self._images[old][1]:
                    del self._images[old]
                elif self._num_unused <= self._max_tiles:
                    break


class AdapterPool:
    """Adapters in memory: at most `most`, of which those with users stay."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._users: OrderedDict[str, int] = OrderedDict()  # by last use
        self.num_uses = self.num_loads = 0

    @property
    def names(self) -> set[str]:
        """The adapters in memory."""
        return set(self._users)

    def acquire(self, name: str) -> bool | None:
        """Use an adapter; return whether it was in memory, or None if all places are in use by others."""
        is_there = name in self._users
        if not is_there and len(self._users) >= self._most:
            unused = next((each for each, users in self._users.items() if not users), None)
            if unused is None:
                return None
            del self._users[unused]
        self.num_uses += 1
        self.num_loads += not is_there
        self._users[name] = self._users.get(name, 0) + 1
        self._users.move_to_end(name)
        return is_there

    def release(self, name: str) -> None:
        """One request less uses an adapter."""
        self._users[name] -= 1
        self._users.move_to_end(name)
