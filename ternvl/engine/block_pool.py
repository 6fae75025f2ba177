"""Blocks of the KV cache, as numbers with reference counts. The tensors are elsewhere (`model/kv_cache.py`).

A block is free while nobody refers to it. A full block may have a key, which names its content: it is then found and
shared by whoever needs the same, also while it is free. New blocks are taken from those without a key, then from those
that have been free for longest (least recently used).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain


class BlockPool:
    """All blocks."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        """`block_size` is in tokens."""
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._references = [0] * num_blocks
        # Dicts for their order and their removal in O(1).
        self._empty = dict.fromkeys(range(num_blocks))
        self._cached: dict[int, None] = {}
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        return len(self._empty) + len(self._cached)

    @property
    def num_cached(self) -> int:
        """Free blocks whose content may still be found."""
        return len(self._cached)

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold that many tokens."""
        return -(-num_tokens // self.block_size)

    def num_references(self, block: int) -> int:
        """How many sequences refer to a block."""
        return self._references[block]

    def draft(self) -> BlockDraft:
        """A plan of allocations that leaves this pool as it is."""
        return BlockDraft(self)

    def find(self, key: bytes) -> int | None:
        """The block that holds what the key names."""
        return self._block_of.get(key)

    def register(self, block: int, key: bytes) -> None:
        """Name the content of a block in use, unless another block holds the same already."""
        assert self._references[block] > 0, f"block {block} is named while it is free"
        if key not in self._block_of and block not in self._key_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def forget(self, blocks: Iterable[int]) -> None:
        """Free blocks may have been written to, so they are not found any more."""
        for block in blocks:
            if block in self._key_of:
                assert self._references[block] == 0, f"block {block} is forgotten while it is in use"
                del self._cached[block], self._block_of[self._key_of.pop(block)]
                self._empty[block] = None

    def share(self, blocks: Iterable[int]) -> None:
        """Refer to blocks once more each, for what they hold."""
        for block in blocks:
            self._cached.pop(block, None)
            self._references[block] += 1

    def allocate(self, blocks: Iterable[int]) -> None:
        """Take free blocks, as a draft named them, to be written anew."""
        for block in blocks:
            assert self._references[block] == 0, f"block {block} is taken while it is in use"
            if block in self._key_of:
                del self._cached[block], self._block_of[self._key_of.pop(block)]
            else:
                del self._empty[block]
            self._references[block] = 1

    def free(self, blocks: Sequence[int]) -> None:
        """Drop one reference of each block of a table. Its last blocks are taken again first: they are of least use to
        others."""
        for block in reversed(blocks):
            assert self._references[block] > 0, f"block {block} is freed twice"
            self._references[block] -= 1
            if not self._references[block]:
                (self._cached if block in self._key_of else self._empty)[block] = None

    def check_integrity(self, tables: Iterable[Iterable[int]]) -> None:
        """Assert that the counts are those of the given block tables, the free blocks the rest, and keys unique."""
        held = Counter(block for table in tables for block in table)
        wrong = [block for block in range(self.num_blocks) if self._references[block] != held[block]]
        assert not wrong, f"blocks with wrong reference counts: {wrong}"
        free = set(range(self.num_blocks)) - set(held)
        named = set(self._key_of)
        assert set(self._empty) == free - named, "the empty blocks are not those unreferenced and unnamed"
        assert set(self._cached) == free & named, "the cached blocks are not those unreferenced and named"
        assert {block: key for key, block in self._block_of.items()} == self._key_of, "keys and blocks do not match"


class BlockDraft:
    """What a pool would hold if blocks were taken, shared and released. Valid until the pool changes."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._fresh = chain(pool._empty, pool._cached)
        self._taken: set[int] = set()
        self._shared: set[int] = set()  # of those that the pool has as free
        self._dropped: Counter[int] = Counter()
        self._released: list[int] = []
        self.num_free = pool.num_free

    def take(self, count: int) -> tuple[int, ...]:
        """Name `count` free blocks; at most `num_free`."""
        assert count <= self.num_free, f"{count} blocks are taken of {self.num_free}"
        self.num_free -= count
        taken = tuple(self._next() for _ in range(count))
        self._taken.update(taken)
        return taken

    def match(self, keys: Iterable[bytes]) -> tuple[int, ...]:
        """The blocks that hold the longest known beginning of a chain of keys."""
        found: list[int] = []
        for key in keys:
            block = self._pool.find(key)
            if block is None or block in self._taken:
                break
            found.append(block)
        return tuple(found)

    def num_woken(self, blocks: Iterable[int]) -> int:
        """How many free blocks sharing these would use up."""
        return sum(self._is_free(block) for block in blocks)

    def share(self, blocks: Iterable[int]) -> None:
        """Refer to blocks once more each."""
        for block in blocks:
            if self._is_free(block):
                self._shared.add(block)
                self.num_free -= 1

    def release(self, blocks: Iterable[int]) -> None:
        """Drop one reference of each, in the plan alone."""
        for block in blocks:
            self._dropped[block] += 1
            if self._dropped[block] == self._pool.num_references(block):
                self._released.append(block)
                self.num_free += 1

    def _is_free(self, block: int) -> bool:
        return self._pool.num_references(block) == 0 and block not in self._shared

    def _next(self) -> int:
        for block in self._fresh:
            if block not in self._shared:
                return block
        return self._released.pop()
