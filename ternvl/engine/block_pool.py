"""Blocks of the KV cache, as numbers with reference counts. The tensors are elsewhere (`model/kv_cache.py`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


class BlockPool:
    """All blocks. A block is free while nobody refers to it; the one that became free first is taken first."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        """`block_size` is in tokens."""
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._references = [0] * num_blocks
        self._free = dict.fromkeys(range(num_blocks))  # a dict for its order and its removal in O(1)

    @property
    def num_free(self) -> int:
        return len(self._free)

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold that many tokens."""
        return -(-num_tokens // self.block_size)

    def num_references(self, block: int) -> int:
        """How many sequences refer to a block."""
        return self._references[block]

    def draft(self) -> BlockDraft:
        """A plan of allocations that leaves this pool as it is."""
        return BlockDraft(self)

    def allocate(self, blocks: Iterable[int]) -> None:
        """Refer to blocks once more each, free ones (as a draft named them) or shared ones."""
        for block in blocks:
            if not self._references[block]:
                del self._free[block]
            self._references[block] += 1

    def free(self, blocks: Iterable[int]) -> None:
        """Drop one reference of each; blocks without any are free again."""
        for block in blocks:
            assert self._references[block] > 0, f"block {block} is freed twice"
            self._references[block] -= 1
            if not self._references[block]:
                self._free[block] = None

    def check_integrity(self, tables: Iterable[Iterable[int]]) -> None:
        """Assert that the counts are those of the given block tables, and the free blocks the rest."""
        held = Counter(block for table in tables for block in table)
        wrong = [block for block in range(self.num_blocks) if self._references[block] != held[block]]
        assert not wrong, f"blocks with wrong reference counts: {wrong}"
        assert set(self._free) == set(range(self.num_blocks)) - set(held), "the free blocks are not those unreferenced"


class BlockDraft:
    """What a pool would hold if blocks were taken and released. Valid until the pool changes."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._fresh = iter(pool._free)
        self._dropped: Counter[int] = Counter()
        self._released: list[int] = []
        self.num_free = pool.num_free

    def take(self, count: int) -> tuple[int, ...]:
        """Name `count` free blocks; at most `num_free`."""
        assert count <= self.num_free, f"{count} blocks are taken of {self.num_free}"
        self.num_free -= count
        return tuple(self._next() for _ in range(count))

    def release(self, blocks: Iterable[int]) -> None:
        """Drop one reference of each, in the plan alone."""
        for block in blocks:
            self._dropped[block] += 1
            if self._dropped[block] == self._pool.num_references(block):
                self._released.append(block)
                self.num_free += 1

    def _next(self) -> int:
        block = next(self._fresh, None)
        return self._released.pop() if block is None else block
