"""Drafts: which tokens are guessed, and how many."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from ternvl.sampling.speculation import AcceptanceRate, Draft, Lookup, Speculator
from ternvl.types import ImageSpan, Prompt


def find(ids: list[int], limit: int = 4, images: tuple[ImageSpan, ...] = ()) -> tuple[int, ...]:
    return Lookup(images).find(ids, limit)


@pytest.mark.parametrize(
    ("ids", "found"),
    [
        ([0, 1, 2, 3, 4, 5, 9, 0, 1, 2], (3, 4, 5, 9)),
        ([0, 1, 2, 3, 8, 0, 1, 2, 4, 8, 0, 1, 2], (4, 8, 0, 1)),  # among equal matches the last
        ([7, 0, 1, 2, 3, 8, 0, 1, 2, 4, 8, 7, 0, 1, 2], (3, 8, 0, 1)),  # the longest match counts, not the last
        ([0, 1, 2, 3, 0, 1, 2], (3, 0, 1, 2)),
        ([1, 2, 1, 2, 1], (2, 1, 2, 1)),  # a run that repeats itself continues
        ([5, 5, 5, 5], (5, 5, 5, 5)),
        ([0, 1, 2, 3, 4, 1, 2], ()),  # two tokens are no match
        ([0, 1, 2], ()),
        ([1], ()),
    ],
)
def test_the_longest_run_then_the_last(ids: list[int], found: tuple[int, ...]) -> None:
    assert find(ids) == found
    assert find(ids, 1) == found[:1]


def test_tokens_of_an_image_never_match_and_are_never_guessed() -> None:
    image = ImageSpan(3, 3, 0, 1, b"a" * 32)
    assert find([0, 1, 2, 6, 6, 6, 4, 0, 1, 2], images=(image,)) == ()
    assert find([0, 1, 2, 6, 6, 6, 4, 6, 6, 6], images=(image,)) == ()
    later = ImageSpan(5, 1, 0, 1, b"a" * 32)
    assert find([0, 1, 2, 3, 4, 5, 9, 0, 1, 2], images=(later,)) == (3, 4)


def test_a_growing_index_finds_what_a_new_one_finds() -> None:
    rng = random.Random(0)
    ids = [rng.randrange(4) for _ in range(400)]
    grown = Lookup(())
    for stop in range(1, len(ids)):
        assert grown.find(ids[:stop], 5) == find(ids[:stop], 5)


def test_the_index_finds_what_a_full_search_finds() -> None:
    """The longest match, of at most 8 tokens, among the last 16 occurrences of the last three tokens."""
    rng = random.Random(1)
    ids = [rng.randrange(5) for _ in range(400)]
    for stop in range(3, len(ids)):
        seen = ids[:stop]
        places = [i for i in range(stop - 1, 2, -1) if seen[i - 3 : i] == seen[-3:]][:16]
        lengths = {i: max(n for n in range(3, 9) if n <= i and seen[i - n : i] == seen[-n:]) for i in places}
        best = max(places, key=lambda i: (lengths[i], i), default=None)
        assert find(seen, 1) == (() if best is None else (seen[best],))


def test_a_draft_ends_before_a_stop_token_and_is_empty_without_room() -> None:
    prompt = Prompt((0, 1, 2, 3, 9, 4, 0, 1, 2))
    assert Speculator(prompt, frozenset({9})).draft(prompt.token_ids, 7, 1).token_ids == (3,)
    assert Speculator(prompt, frozenset({3})).draft(prompt.token_ids, 7, 1).token_ids == ()
    assert Speculator(prompt, frozenset()).draft(prompt.token_ids, 0, 1) == Draft()
    assert Speculator(prompt, frozenset()).draft(prompt.token_ids, -1, 1) == Draft()


def test_the_length_grows_with_accepted_drafts() -> None:
    rate = AcceptanceRate()
    lengths = [rate.length(0, 1)]
    for _ in range(5):
        rate.record(lengths[-1], lengths[-1], 0, 0.1)
        lengths.append(rate.length(0, 1))
    assert lengths[0] == 1
    assert lengths == sorted(lengths)
    assert lengths[-1] > 12
    rate.record(0, 7, 0, 0.1)
    assert 2 < rate.length(0, 1) < lengths[-1], "one rejection does not stop the drafts"


def test_drafts_are_shorter_in_steps_of_more_rows() -> None:
    rate = AcceptanceRate()
    rate.record(3, 3, 0, 0.1)
    lengths = [rate.length(0, num_rows) for num_rows in (1, 2, 4, 8, 100)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > 4
    assert lengths[-1] == 1


def test_rejections_bring_pauses_that_double_until_a_token_is_accepted() -> None:
    rate, drafted = AcceptanceRate(), 0
    starts: list[tuple[int, int]] = []
    for position in range(600):  # an answer that never repeats what came before
        length = rate.length(position, 1)
        if length:
            starts.append((position, length))
            drafted += length
            rate.record(0, length, position + 1, 0.1)
    gaps = [after[0] - before[0] for before, after in pairwise(starts)]
    assert [gap for gap in gaps if gap > 1] == [17, 33, 65, 129, 129, 129]
    assert [length for _, length in starts[-5:]] == [1] * 5
    assert drafted < 18
    position = next(position for position in range(600, 1200) if rate.length(position, 1))
    for _ in range(2):
        rate.record(1, 1, position, 0.1)
    assert rate.length(position, 1) > 1
