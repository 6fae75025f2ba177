"""The scheduler, the pool and the sequence alone: no model, tokens from a counter."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ternvl.config import EngineConfig
from ternvl.engine.cache.block_pool import BlockPool
from ternvl.engine.cache.tiles import TileCache
from ternvl.engine.request import Request
from ternvl.engine.schedule import Schedule
from ternvl.engine.scheduler import Scheduler
from ternvl.engine.sequence import Sequence, Status
from ternvl.errors import OverloadedError
from ternvl.params import SamplingParams
from ternvl.types import FinishReason, ImageSpan, Prompt

MAX_MODEL_LEN = 64
BLOCK_SIZE = 4


def make_sequence(number: int, num_tokens: int, *, max_tokens: int = 8, priority: int = 0) -> Sequence:
    params = SamplingParams(max_tokens=max_tokens)
    request = Request(str(number), Prompt(tuple(range(num_tokens))), params, priority)
    return sequence_of(request, number)


def sequence_of(request: Request, arrival: int = 0, sibling: Sequence | None = None) -> Sequence:
    return Sequence(
        request,
        arrival=arrival,
        seed=0,
        stop_ids=frozenset({99}),
        max_model_len=MAX_MODEL_LEN,
        block_size=BLOCK_SIZE,
        sibling=sibling,
    )


def make_scheduler(num_blocks: int = 64, **options: Any) -> Scheduler:
    options = {"max_num_batched_tokens": 2048, "max_num_batched_tiles": 13, "enable_prefix_caching": False, **options}
    config = EngineConfig(max_model_len=MAX_MODEL_LEN, block_size=BLOCK_SIZE, **options)
    return Scheduler(config, BlockPool(num_blocks, BLOCK_SIZE), TileCache(options.get("image_cache_memory", 99), 1))


def step(scheduler: Scheduler) -> Schedule:
    schedule = scheduler.schedule()
    scheduler.update(schedule, [[50]] * len(schedule.sampling))
    scheduler.check_integrity()
    return schedule


def shares(schedule: Schedule) -> list[tuple[str, int]]:
    return [(chunk.sequence.id, chunk.num_tokens) for chunk in schedule.chunks if chunk.num_tokens]


def test_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import ternvl.engine.cache.block_keys, ternvl.engine.cache.block_pool, ternvl.engine.cache.tiles\n"
        "import ternvl.engine.schedule, ternvl.engine.scheduler, ternvl.engine.sequence"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_schedule_changes_nothing() -> None:
    scheduler = make_scheduler(num_blocks=5, max_num_batched_tokens=6)
    for number in range(3):
        scheduler.add(make_sequence(number, 7))
    step(scheduler)
    before = [(s.num_computed, s.status, list(s.block_table)) for s in scheduler.running + scheduler.waiting]
    first, second = scheduler.schedule(), scheduler.schedule()
    assert shares(first) == shares(second)
    assert before == [(s.num_computed, s.status, list(s.block_table)) for s in scheduler.running + scheduler.waiting]
    scheduler.check_integrity()


def test_decoding_comes_first_and_a_long_prompt_takes_the_rest() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=10)
    for number, length in enumerate([3, 25, 2]):
        scheduler.add(make_sequence(number, length))
    assert [shares(step(scheduler)) for _ in range(5)] == [
        [("0", 3), ("1", 7)],
        [("0", 1), ("1", 9)],
        [("0", 1), ("1", 9)],
        [("0", 1), ("1", 1), ("2", 2)],
        [("0", 1), ("1", 1), ("2", 1)],
    ]


def test_priority_then_arrival() -> None:
    scheduler = make_scheduler(max_num_seqs=2)
    for number, priority in enumerate([1, 0, 0, -1]):
        scheduler.add(make_sequence(number, 4, priority=priority))
    assert shares(step(scheduler)) == [("3", 4), ("1", 4)]


def test_at_most_max_num_seqs_and_the_next_when_one_ends() -> None:
    scheduler = make_scheduler(max_num_seqs=2)
    for number in range(3):
        scheduler.add(make_sequence(number, 4, max_tokens=number + 1))
    assert shares(step(scheduler)) == [("0", 4), ("1", 4)]
    assert shares(step(scheduler)) == [("1", 1), ("2", 4)]


def test_none_overtakes_one_that_waits_for_blocks() -> None:
    scheduler = make_scheduler(num_blocks=4)
    for number, length in enumerate([8, 12, 4]):
        scheduler.add(make_sequence(number, length))
    assert shares(step(scheduler)) == [("0", 8)]
    assert shares(step(scheduler)) == [("0", 1)]


def test_the_youngest_gives_way_and_comes_back_with_its_tokens() -> None:
    scheduler = make_scheduler(num_blocks=4)
    old, young = make_sequence(0, 8, max_tokens=5), make_sequence(1, 8, max_tokens=4)
    scheduler.add(old)
    scheduler.add(young)
    step(scheduler)
    schedule = step(scheduler)
    assert schedule.preempted == (young,)
    assert (young.status, young.num_computed, young.num_tokens, young.block_table) == (Status.WAITING, 0, 9, [])
    while old.finish_reason is None:
        step(scheduler)
    assert shares(step(scheduler)) == [("1", 9)]
    while scheduler.has_work:
        step(scheduler)
    assert young.output_ids == [50] * 4
    assert scheduler.pool.num_free == 4


def test_tokens_of_an_image_wait_for_its_tiles() -> None:
    scheduler = make_scheduler(max_num_batched_tiles=2)
    image = ImageSpan(start=3, num_tokens=12, first_tile=0, num_tiles=3, digest=b"a")
    second = ImageSpan(start=16, num_tokens=4, first_tile=3, num_tiles=1, digest=b"b")
    request = Request("0", Prompt(tuple(range(22)), (image, second)), SamplingParams(max_tokens=2))
    scheduler.add(sequence_of(request))
    steps = [step(scheduler) for _ in range(3)]
    tiles = [[(work.row, work.key) for work in s.tiles] for s in steps]
    keys = (*image.tile_keys, *second.tile_keys)
    assert tiles == [[(0, keys[0]), (1, keys[1])], [(2, keys[2]), (3, keys[3])], []]
    assert [(chunk.start, chunk.num_tokens) for s in steps for chunk in s.chunks] == [(0, 11), (11, 11), (22, 1)]


REPEATING = Prompt((1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3))


def repeating(number: int) -> Sequence:
    """One whose answer is expected to go on in its circle: 4, 5, 6, 7, 8, 1 and so on."""
    return sequence_of(Request(str(number), REPEATING, SamplingParams(max_tokens=40)), number)


def hold(scheduler: Scheduler) -> Schedule:
    """A step in which every guess is right."""
    schedule = scheduler.schedule()
    assert shares(schedule) == shares(scheduler.schedule())
    drawn = [[*chunk.draft.token_ids, chunk.token_ids[-1] % 8 + 1] for chunk in schedule.sampling]
    scheduler.update(schedule, drawn)
    scheduler.check_integrity()
    return schedule


def test_drafts_fill_a_small_step_and_are_shared_out() -> None:
    scheduler = make_scheduler(speculation="ngram", num_speculative_tokens=6)
    for number in range(3):
        scheduler.add(repeating(number))
    assert not any(chunk.draft for chunk in hold(scheduler).chunks), "a step of prompts is no small one"
    rows = [sorted(chunk.num_tokens for chunk in hold(scheduler).chunks) for _ in range(4)]
    assert rows[0] == [2, 2, 2]
    assert rows[-1] == [2, 2, 3]
    assert scheduler.num_draft_tokens == scheduler.num_accepted_tokens == sum(map(sum, rows)) - 12
    scheduler.add(make_sequence(9, 8))
    assert not any(chunk.draft for chunk in scheduler.schedule().chunks)


@pytest.mark.parametrize("num_blocks", [5, 64])
def test_a_draft_takes_only_blocks_to_spare_and_gives_back_what_did_not_hold(num_blocks: int) -> None:
    scheduler = make_scheduler(num_blocks, speculation="ngram", num_speculative_tokens=7)
    sequence = repeating(0)
    scheduler.add(sequence)
    while sequence.num_tokens < 5 * BLOCK_SIZE - 3:
        hold(scheduler)
    schedule = scheduler.schedule()
    chunk = schedule.chunks[0]
    assert (chunk.stop > 5 * BLOCK_SIZE) == (num_blocks > 5)
    assert len(chunk.block_table) == scheduler.pool.num_blocks_for(chunk.stop) <= num_blocks
    before = sequence.num_tokens
    scheduler.update(schedule, [[50]])
    scheduler.check_integrity()
    assert (sequence.num_tokens, sequence.num_computed) == (before + 1, before)
    assert len(sequence.block_table) == scheduler.pool.num_blocks_for(before + 1)


def test_full_queue() -> None:
    scheduler = make_scheduler(max_queue=1)
    scheduler.add(make_sequence(0, 4))
    with pytest.raises(OverloadedError, match="1 requests are waiting"):
        scheduler.add(make_sequence(1, 4))
    step(scheduler)
    scheduler.add(make_sequence(1, 4))
    assert len(scheduler.waiting) == 1


def test_stop_token_ends_without_being_kept() -> None:
    scheduler = make_scheduler()
    sequence = make_sequence(0, 4)
    scheduler.add(sequence)
    step(scheduler)
    scheduler.update(scheduler.schedule(), [[99]])
    assert (sequence.output_ids, sequence.finish_reason) == ([50], FinishReason.STOP)
    assert not scheduler.has_work
    scheduler.check_integrity()


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 20), st.integers(0, 1)), min_size=1, max_size=12),
    num_blocks=st.integers(16, 30),
    budget=st.integers(6, 40),
    max_num_seqs=st.integers(1, 6),
)
def test_every_sequence_gets_all_its_tokens(
    lengths: list[tuple[int, int, int]], num_blocks: int, budget: int, max_num_seqs: int
) -> None:
    scheduler = make_scheduler(num_blocks, max_num_batched_tokens=budget, max_num_seqs=max_num_seqs)
    sequences = [
        make_sequence(number, length, max_tokens=tokens, priority=priority)
        for number, (length, tokens, priority) in enumerate(lengths)
    ]
    for sequence in sequences:
        scheduler.add(sequence)
    for _ in range(20_000):
        if not scheduler.has_work:
            break
        schedule = step(scheduler)
        assert 0 < sum(chunk.num_tokens for chunk in schedule.chunks) <= budget
        assert len(schedule.chunks) <= max_num_seqs
    assert [len(sequence.output_ids) for sequence in sequences] == [tokens for _, tokens, _ in lengths]
    assert scheduler.pool.num_free == num_blocks
