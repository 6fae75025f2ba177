"""What is guessed of an answer, and how much of it."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from ternvl.sampling.speculation import Draft, Lookup, Speculator, Trust
from ternvl.types import ImageSpan, Prompt


def find(ids: list[int], limit: int = 4, images: tuple[ImageSpan, ...] = ()) -> tuple[int, ...]:
    return Lookup(images).find(ids, limit)


@pytest.mark.parametrize(
    ("ids", "found"),
    [
        ([0, 1, 2, 3, 4, 5, 9, 0, 1, 2], (3, 4, 5, 9)),
        ([0, 1, 2, 3, 8, 0, 1, 2, 4, 8, 0, 1, 2], (4, 8, 0, 1)),  # of equal matches the last
        ([7, 0, 1, 2, 3, 8, 0, 1, 2, 4, 8, 7, 0, 1, 2], (3, 8, 0, 1)),  # the longest comes before the last
        ([0, 1, 2, 3, 0, 1, 2], (3, 0, 1, 2)),
        ([1, 2, 1, 2, 1], (2, 1, 2, 1)),  # a run that repeats itself goes on
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


def test_an_index_that_grows_finds_what_a_fresh_one_finds() -> None:
    rng = random.Random(0)
    ids = [rng.randrange(4) for _ in range(400)]
    grown = Lookup(())
    for stop in range(1, len(ids)):
        assert grown.find(ids[:stop], 5) == find(ids[:stop], 5)


def test_drafts_are_what_a_search_through_all_tokens_finds() -> None:
    """The longest run among the last 16 places of its last three tokens, at most 8 tokens long."""
    rng = random.Random(1)
    ids = [rng.randrange(5) for _ in range(400)]
    for stop in range(3, len(ids)):
        seen = ids[:stop]
        places = [i for i in range(stop - 1, 2, -1) if seen[i - 3 : i] == seen[-3:]][:16]
        lengths = {i: max(n for n in range(3, 9) if n <= i and seen[i - n : i] == seen[-n:]) for i in places}
        best = max(places, key=lambda i: (lengths[i], i), default=None)
        assert find(seen, 1) == (() if best is None else (seen[best],))


def test_nothing_is_guessed_from_a_stop_token_on_or_without_room() -> None:
    prompt = Prompt((0, 1, 2, 3, 9, 4, 0, 1, 2))
    assert Speculator(prompt, frozenset({9})).draft(prompt.token_ids, 7, 1).token_ids == (3,)
    assert Speculator(prompt, frozenset({3})).draft(prompt.token_ids, 7, 1).token_ids == ()
    assert Speculator(prompt, frozenset()).draft(prompt.token_ids, 0, 1) == Draft()
    assert Speculator(prompt, frozenset()).draft(prompt.token_ids, -1, 1) == Draft()


def test_trust_grows_with_drafts_that_hold() -> None:
    trust = Trust()
    lengths = [trust.length(0, 1)]
    for _ in range(5):
        trust.judge(lengths[-1], lengths[-1], 0, 0.1)
        lengths.append(trust.length(0, 1))
    assert lengths[0] == 1
    assert lengths == sorted(lengths)
    assert lengths[-1] > 12
    trust.judge(0, 7, 0, 0.1)
    assert 2 < trust.length(0, 1) < lengths[-1], "one failure is no reason to stop"


def test_the_more_others_a_row_delays_the_likelier_must_it_be() -> None:
    trust = Trust()
    trust.judge(3, 3, 0, 0.1)
    lengths = [trust.length(0, num_rows) for num_rows in (1, 2, 4, 8, 100)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > 4
    assert lengths[-1] == 1


def test_failures_bring_pauses_that_double_until_a_token_holds() -> None:
    trust, drafted = Trust(), 0
    starts: list[tuple[int, int]] = []
    for position in range(600):  # an answer that never repeats what came before
        length = trust.length(position, 1)
        if length:
            starts.append((position, length))
            drafted += length
            trust.judge(0, length, position + 1, 0.1)
    gaps = [after[0] - before[0] for before, after in pairwise(starts)]
    assert [gap for gap in gaps if gap > 1] == [17, 33, 65, 129, 129, 129]
    assert [length for _, length in starts[-5:]] == [1] * 5
    assert drafted < 18
    position = next(position for position in range(600, 1200) if trust.length(position, 1))
    for _ in range(2):
        trust.judge(1, 1, position, 0.1)
    assert trust.length(position, 1) > 1
