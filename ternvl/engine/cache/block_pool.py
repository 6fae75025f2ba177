"""Reference counts of the KV cache's blocks, which are numbers here. `model/kv_cache.py` has the tensors.

A block is free while no sequence refers to it. A full block may have a key, which names its content. It can then be
found and shared by any sequence that needs the same content, also while it is free. New blocks are taken from the free
blocks without a key, then from those that have been free for longest (least recently used).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ternvl.engine.cache.events import EventRecorder


class BlockPool:
    """All blocks of the KV cache."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        """`block_size` is in tokens."""
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._references = [0] * num_blocks
        # Free blocks without and with a key. Dicts keep their order and remove a block in O(1).
        self._empty = dict.fromkeys(range(num_blocks))
        self._cached: dict[int, None] = {}
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self.events: EventRecorder | None = None
        """Takes what is stored and removed, if anybody wants to know."""

    @property
    def num_free(self) -> int:
        return len(self._empty) + len(self._cached)

    @property
    def num_cached(self) -> int:
        """Number of free blocks whose content can still be found."""
        return len(self._cached)

    def num_blocks_for(self, num_tokens: int) -> int:
        """Return the number of blocks that `num_tokens` tokens take."""
        return -(-num_tokens // self.block_size)

    def num_references(self, block: int) -> int:
        """Return the number of sequences that refer to a block."""
        return self._references[block]

    def draft(self) -> BlockDraft:
        """Return a plan of allocations, which does not change this pool."""
        return BlockDraft(self)

    def find(self, key: bytes) -> int | None:
        """Return the block with the content that the key names, or None."""
        return self._block_of.get(key)

    def register(self, block: int, key: bytes) -> bool:
        """Give a block in use a key, unless another block has the same key already. Return whether it got one now."""
        assert self._references[block] > 0, f"block {block} gets a key while it is free"
        is_new = key not in self._block_of and block not in self._key_of
        if is_new:
            self._block_of[key] = block
            self._key_of[block] = key
        return is_new

    def forget(self, blocks: Iterable[int]) -> None:
        """Remove the keys of free blocks that may have been overwritten."""
        for block in blocks:
            if block in self._key_of:
                assert self._references[block] == 0, f"block {block} loses its key while it is in use"
                self._drop_key(block)
                self._empty[block] = None

    def _drop_key(self, block: int) -> None:
        """Remove the key of a free block."""
        key = self._key_of.pop(block)
        del self._cached[block], self._block_of[key]
        if self.events is not None:
            self.events.removed(key)

    def share(self, blocks: Iterable[int]) -> None:
        """Add one reference to each block, to use its content."""
        for block in blocks:
            self._cached.pop(block, None)
            self._references[block] += 1

    def allocate(self, blocks: Iterable[int]) -> None:
        """Take the free blocks that a draft has chosen, to overwrite them."""
        for block in blocks:
            assert self._references[block] == 0, f"block {block} is taken while it is in use"
            if block in self._key_of:
                self._drop_key(block)
            else:
                del self._empty[block]
            self._references[block] = 1

    def free(self, blocks: Sequence[int]) -> None:
        """Drop one reference to each block of a table.

        The last blocks of a table will be overwritten first, since they are the least likely to be shared.
        """
        for block in reversed(blocks):
            assert self._references[block] > 0, f"block {block} is freed twice"
            self._references[block] -= 1
            if not self._references[block]:
                (self._cached if block in self._key_of else self._empty)[block] = None

    def check_integrity(self, tables: Iterable[Iterable[int]]) -> None:
        """Assert that the counts match the given block tables, all other blocks are free, and keys are unique."""
        references = Counter(block for table in tables for block in table)
        wrong = [block for block in range(self.num_blocks) if self._references[block] != references[block]]
        assert not wrong, f"blocks with wrong reference counts: {wrong}"
        free = set(range(self.num_blocks)) - set(references)
        with_key = set(self._key_of)
        assert set(self._empty) == free - with_key, "the empty blocks are not the free blocks without a key"
        assert set(self._cached) == free & with_key, "the cached blocks are not the free blocks with a key"
        assert {block: key for key, block in self._block_of.items()} == self._key_of, "keys and blocks do not match"


class BlockDraft:
    """A plan of blocks to take, share and release. It is valid until the pool changes."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._candidates = chain(pool._empty, pool._cached)
        self._taken: set[int] = set()
        self._shared: set[int] = set()  # blocks that are free in the pool
        self._dropped: Counter[int] = Counter()
        self._released: list[int] = []
        self.num_free = pool.num_free

    def take(self, count: int) -> tuple[int, ...]:
        """Choose `count` free blocks, at most `num_free`."""
        assert count <= self.num_free, f"{count} blocks are taken of {self.num_free}"
        self.num_free -= count
        taken = tuple(self._take_one() for _ in range(count))
        self._taken.update(taken)
        return taken

    def match(self, keys: Iterable[bytes]) -> tuple[int, ...]:
        """Return the blocks of the longest prefix of `keys` that is in the pool."""
        found: list[int] = []
        for key in keys:
            block = self._pool.find(key)
            if block is None or block in self._taken:
                break
            found.append(block)
        return tuple(found)

    def num_newly_used(self, blocks: Iterable[int]) -> int:
        """Return the number of free blocks that sharing `blocks` would use."""
        return sum(self._is_free(block) for block in blocks)

    def share(self, blocks: Iterable[int]) -> None:
        """Add one reference to each block, in the plan only."""
        for block in blocks:
            if self._is_free(block):
                self._shared.add(block)
                self.num_free -= 1

    def release(self, blocks: Iterable[int]) -> None:
        """Drop one reference to each block, in the plan only."""
        for block in blocks:
            self._dropped[block] += 1
            if self._dropped[block] == self._pool.num_references(block):
                self._released.append(block)
                self.num_free += 1

    def _is_free(self, block: int) -> bool:
        return self._pool.num_references(block) == 0 and block not in self._shared

    def _take_one(self) -> int:
        for block in self._candidates:
            if block not in self._shared:
                return block
        return self._released.pop()
