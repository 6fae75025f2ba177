"""What the log and a refusal tell of the engine's pace, on a clock of our own."""

from __future__ import annotations

import logging

import pytest

from ternvl.engine.stats import MAX_SECONDS, EngineStats, Pace, StatsLog, describe


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_line_has_shares_and_rates_of_what_happened_in_between() -> None:
    before = EngineStats(num_prompt_tokens=1000, num_prefix_hit_tokens=1000, num_generated_tokens=50, num_image_hits=9)
    after = EngineStats(
        num_running=4,
        num_waiting=2,
        num_blocks=200,
        num_free_blocks=126,
        num_prompt_tokens=2000,
        num_prefix_hit_tokens=1610,
        num_image_lookups=4,
        num_image_hits=11,
        num_prefill_tokens=8120,
        num_generated_tokens=1480,
    )
    assert describe(before, after, 10) == (
        "running 4, waiting 2, KV 37 %, prefix hits 61 %, image hits 50 %, prefill 812 tok/s, decode 143 tok/s"
    )


def test_a_share_of_nothing_is_a_dash_and_preemptions_are_told() -> None:
    assert describe(EngineStats(), EngineStats(num_preemptions=3), 0) == (
        "running 0, waiting 0, KV -, prefix hits -, image hits -, prefill 0 tok/s, decode 0 tok/s, preempted 3"
    )


def test_a_line_tells_how_many_drafts_held_where_there_were_any() -> None:
    after = EngineStats(num_draft_tokens=40, num_accepted_tokens=30)
    assert describe(EngineStats(), after, 1).endswith("decode 0 tok/s, drafts held 75 %")


def test_lines_come_an_interval_apart_until_one_tells_that_all_is_done(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock, stats = Clock(), EngineStats(num_running=1)
    log = StatsLog(lambda: stats, 10, clock)
    log.write()
    assert (log.seconds_left, caplog.messages) == (None, [])
    for _ in range(25):
        log.begin_step()
        clock.now += 1
        stats = EngineStats(num_running=1, num_generated_tokens=stats.num_generated_tokens + 7)
        log.end_step()
        log.write()
    assert [message.rpartition(", ")[2] for message in caplog.messages] == ["decode 7 tok/s"] * 2
    stats = EngineStats(num_generated_tokens=stats.num_generated_tokens)
    assert log.seconds_left == 5
    clock.now += 5
    log.write()
    assert caplog.messages[-1].startswith("running 0")
    assert caplog.messages[-1].endswith("decode 7 tok/s"), "the pause is no part of the rate"
    assert log.seconds_left is None
    clock.now += 100
    log.write()
    assert len(caplog.messages) == 3


def test_the_wait_follows_from_how_often_requests_end() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.resume()
    assert pace.seconds_for(1) == 1, "of nothing one knows nothing"
    for _ in range(10):
        clock.now += 2
        pace.count()
    assert (pace.seconds_for(1), pace.seconds_for(4)) == (2, 8)
    for _ in range(200):
        clock.now += 0.1
        pace.count()
    assert (pace.seconds_for(1), pace.seconds_for(30)) == (1, 3), "only the latest count"
    clock.now += 10_000
    assert pace.seconds_for(9) == MAX_SECONDS


def test_pauses_without_work_are_no_part_of_the_pace() -> None:
    clock = Clock()
    pace = Pace(clock)
    clock.now += 500
    pace.resume()
    for _ in range(10):
        clock.now += 6
        pace.count()
    pace.pause()
    clock.now += 10_000
    assert pace.seconds_for(1) == 6
    pace.resume()
    pace.resume()
    assert pace.seconds_for(1) == 6, "at the beginning of a burst, the pace of earlier work counts"
    clock.now += 60
    assert pace.wait_for(2) == pytest.approx(24)


def test_before_any_end_a_wait_is_as_long_as_the_work_has_taken() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert not pace.is_known
    pace.resume()
    clock.now += 12
    assert pace.seconds_for(1) == 12
    pace.count()
    assert pace.is_known
