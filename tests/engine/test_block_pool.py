"""The pool and its drafts, and the keys that name what blocks hold."""

from __future__ import annotations

import pytest

from ternvl.engine.cache.block_keys import BlockKeys
from ternvl.engine.cache.block_pool import BlockPool
from ternvl.engine.request import Request
from ternvl.params import SamplingParams
from ternvl.types import ImageSpan, Prompt


def test_references_are_counted() -> None:
    pool = BlockPool(3, 4)
    pool.allocate([0, 1])
    pool.share([1])
    pool.free([0, 1])
    pool.check_integrity([[1]])
    draft = pool.draft()
    draft.release([1])
    assert draft.num_free == 3
    assert sorted(draft.take(3)) == [0, 1, 2]
    assert pool.num_free == 2
    with pytest.raises(AssertionError, match="wrong reference counts"):
        pool.check_integrity([[1, 1]])
    with pytest.raises(AssertionError, match="freed twice"):
        pool.free([2])
    with pytest.raises(AssertionError, match="in use"):
        pool.allocate([1])


def test_named_blocks_are_found_until_they_are_taken_longest_free_first() -> None:
    pool = BlockPool(4, 4)
    pool.allocate([0, 1, 2])
    for block, key in enumerate([b"a", b"b", b"c"]):
        pool.register(block, key)
    pool.free([0, 1])
    pool.free([2])
    pool.check_integrity([])
    assert (pool.num_free, pool.num_cached) == (4, 3)
    # The unnamed block first, then the end of the table that was freed first.
    assert pool.draft().take(4) == (3, 1, 0, 2)
    pool.allocate([3, 1])
    assert [pool.find(key) for key in (b"a", b"b", b"c")] == [0, None, 2]
    pool.check_integrity([[3, 1]])


def test_a_draft_shares_what_it_has_not_taken() -> None:
    pool = BlockPool(3, 4)
    pool.allocate([0, 1, 2])
    for block, key in enumerate([b"a", b"b", b"c"]):
        pool.register(block, key)
    pool.free([0, 1])
    draft = pool.draft()
    assert draft.match([b"a", b"c", b"x", b"b"]) == (0, 2)
    assert draft.num_newly_used((0, 2)) == 1
    draft.share((0, 2))
    assert (draft.num_free, draft.num_newly_used((0, 2))) == (1, 0)
    assert draft.take(1) == (1,)
    assert draft.match([b"b"]) == ()
    pool.share([0, 2])
    pool.allocate([1])
    pool.check_integrity([[0, 2], [1], [2]])


def test_of_equal_content_one_block_is_named() -> None:
    pool = BlockPool(2, 4)
    pool.allocate([0, 1])
    pool.register(0, b"a")
    pool.register(1, b"a")
    pool.free([0])
    pool.free([1])
    pool.check_integrity([])
    assert (pool.find(b"a"), pool.num_cached) == (0, 1)


def keys(
    token_ids: list[int], *, images: tuple[ImageSpan, ...] = (), salt: str = "", block_size: int = 4
) -> list[bytes]:
    request = Request("r", Prompt(tuple(token_ids), images), SamplingParams(), cache_salt=salt)
    return BlockKeys(request, block_size).first(len(token_ids) // block_size, token_ids)


def common(first: list[bytes], second: list[bytes]) -> int:
    same = [a == b for a, b in zip(first, second, strict=True)]
    assert same == sorted(same, reverse=True), "keys agree again after they have differed"
    return sum(same)


def test_a_key_stands_for_all_that_came_before() -> None:
    plain = keys(list(range(16)))
    assert len(set(plain)) == 4
    assert common(plain, keys(list(range(16)))) == 4
    assert common(plain, keys([*range(9), 99, *range(10, 16)])) == 2
    assert common(plain, keys([99, *range(1, 16)])) == 0
    assert common(plain, keys(list(range(16)), salt="b")) == 0


def image(start: int, digest: bytes) -> ImageSpan:
    return ImageSpan(start, 4, 0, 1, digest)


def test_images_of_equal_size_share_nothing_from_their_first_token_on() -> None:
    ids = [1] * 6 + [5] * 4 + [1] * 6
    a, b = (keys(ids, images=(image(6, digest * 32),)) for digest in (b"a", b"b"))
    assert common(a, b) == 1
    assert common(a, keys(ids)) == 1
    assert common(a, keys(ids, images=(image(5, b"a" * 32),))) == 1  # the same image one token earlier
    assert common(a, keys(ids, images=(image(6, b"a" * 32),))) == 4


@pytest.mark.parametrize(("by_tile", "shared"), [(True, 3), (False, 0)])
def test_images_that_begin_with_the_same_tiles_share_their_blocks(by_tile: bool, shared: int) -> None:
    tiles = {"a": (b"p" * 32, b"q" * 32, b"r" * 32), "b": (b"p" * 32, b"q" * 32, b"s" * 32)}
    ids = [1, 1, *[5] * 18, 1, 1]
    a, b = (
        BlockKeys(
            Request("r", Prompt(tuple(ids), (ImageSpan(2, 18, 0, 3, name.encode() * 32, each),)), SamplingParams()),
            4,
            by_tile=by_tile,
        )
        for name, each in tiles.items()
    )
    assert common(a.first(5, ids), b.first(5, ids)) == shared  # the third tile begins within the fourth block


def test_keys_grow_with_the_tokens() -> None:
    request = Request("r", Prompt((1, 2)), SamplingParams())
    grown, whole = BlockKeys(request, 2), BlockKeys(request, 2)
    ids = [1, 2]
    for token in range(6):
        grown.first(len(ids) // 2, ids)
        ids.append(token)
    assert grown.first(4, ids) == whole.first(4, ids)
