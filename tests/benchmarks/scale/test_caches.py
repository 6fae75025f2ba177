"""Simulated caches against plain computations of the same, and against the engine's own."""

from __future__ import annotations

import random
from collections import Counter, OrderedDict

import pytest

from benchmarks.scale.caches import AdapterPool, ImageCache, PrefixCache
from ternvl.engine.cache.block_pool import BlockPool
from ternvl.engine.cache.tiles import TileCache, TileUse
from ternvl.types import ImageSpan


def test_hits_of_single_blocks_are_those_of_least_recently_used() -> None:
    """One segment of one block for each request, whose last token needs a block of its own."""
    rng, cache, plain, hits = random.Random(4), PrefixCache(33), OrderedDict[int, None](), 0
    for _ in range(5_000):
        name = int(rng.paretovariate(0.6)) % 90
        lease = cache.admit([(name, 16), ("own", 1)], 17)
        assert lease is not None
        hits += name in plain
        assert (lease.num_found > 0) == (name in plain)
        cache.publish(lease, [(name, 16)])
        if len(plain) == 32 and name not in plain:
            plain.popitem(last=False)
        plain[name] = None
        plain.move_to_end(name)
        cache.release(lease)
    assert cache.num_found == 16 * hits
    assert 1_000 < hits < 4_500
    assert cache.num_used == 0


def engine_hits(pool: BlockPool, keys: list[bytes], num_blocks: int) -> tuple[int, list[int]]:
    draft = pool.draft()
    found = draft.match(keys)
    draft.share(found)
    new = draft.take(num_blocks - len(found))
    pool.share(found)
    pool.allocate(new)
    return len(found), [*found, *new]


def test_hits_of_chains_are_those_of_the_engine() -> None:
    """Prompts of one to four segments of one block, several of which run at the same time."""
    rng, cache, pool = random.Random(5), PrefixCache(64), BlockPool(64, 16)
    running: list[tuple[object, list[tuple[object, int]], list[int], list[bytes]]] = []
    total = 0
    for _ in range(4_000):
        names = [rng.randrange(4) for _ in range(rng.randrange(1, 5))]
        prefixes = [tuple(names[: end + 1]) for end in range(len(names))]
        chain = [*((prefix, 16) for prefix in prefixes), (object(), 1)]
        keys = [repr(prefix).encode() for prefix in prefixes]
        lease = cache.admit(chain, 16 * len(names) + 1)
        assert lease is not None
        found, table = engine_hits(pool, keys, len(names) + 1)
        assert lease.num_found == 16 * found
        total += found
        cache.publish(lease, chain)
        for block, key in zip(table, keys, strict=False):
            pool.register(block, key)
        running.append((lease, chain, table, keys))  # type: ignore[arg-type]
        if len(running) > 5:
            done = running.pop(rng.randrange(len(running)))
            cache.release(done[0])  # type: ignore[arg-type]
            pool.free(done[2])
    assert total > 2_000


def test_a_prompt_without_room_waits_and_changes_nothing() -> None:
    cache = PrefixCache(4)
    lease = cache.admit([("a", 32)], 48)
    assert lease is not None
    assert (lease.num_found, cache.num_used) == (0, 3)
    assert cache.admit([("b", 32)], 32) is None
    assert (cache.num_used, cache.num_tokens) == (3, 32)
    cache.release(lease)
    assert cache.num_used == 0
    assert cache.admit([("b", 32)], 64) is not None


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    cache = PrefixCache(8)
    for expected in (0, 16):
        lease = cache.admit([("a", 16), ("b", 16)], 33)
        assert lease is not None
        assert lease.num_found == expected
        cache.publish(lease, [("a", 16), ("b", 16)])
        cache.release(lease)


def test_image_hits_are_those_of_the_engine() -> None:
    rng, cache, engine = random.Random(6), ImageCache(12), TileCache(12 * 100, 100)
    held: list[TileUse] = []
    for _ in range(5_000):
        number = int(rng.paretovariate(0.7)) % 40
        digest, tiles = bytes([number]), 1 + number % 3
        keys = tuple(bytes([number, tile]) for tile in range(tiles))
        use = TileUse(ImageSpan(0, tiles, 0, tiles, digest, tile_digests=keys))
        cache.acquire(digest, tiles)
        engine.acquire(use)
        missing = [key for key in keys if not engine.is_encoded(key)]
        assert cache.num_encoded(digest) == tiles - len(missing)
        cache.encode(digest, len(missing))
        engine.finish(missing)
        held.append(use)
        if len(held) > 3:
            gone = held.pop(rng.randrange(4))
            cache.release(gone.image.digest)
            engine.release(gone)
        kept = Counter(key[0] for key in engine.keys)
        assert {name[0]: image[1] for name, image in cache._images.items()} == kept
    counts = engine.counts()
    assert (cache.num_hits, cache.num_lookups) == (counts["num_image_hits"], counts["num_image_lookups"])
    assert 500 < cache.num_hits < 4_900


def test_adapters_in_use_stay() -> None:
    pool = AdapterPool(2)
    assert [pool.acquire(name) for name in ("a", "b", "a")] == [False, False, True]
    assert pool.acquire("c") is None
    pool.release("b")
    assert pool.acquire("c") is False
    assert pool.names == {"a", "c"}
    assert (pool.num_uses, pool.num_loads) == (4, 3)
    pool.release("a")
    assert pool.acquire("b") is None
    pool.release("a")
    assert pool.acquire("b") is False
    with pytest.raises(KeyError):
        pool.release("a")
