"""Who is refused because of the time that a request would wait, on a clock that the test turns."""

from __future__ import annotations

import random

import pytest

from ternvl.engine.loop import Loop
from ternvl.engine.request import Request, RequestGroup
from ternvl.engine.stats import Pace
from ternvl.errors import ConfigError, OverloadedError
from ternvl.params import SamplingParams
from tests.engine.test_stats import Clock
from tests.engine.tiny import make_engine, make_model, text_prompt


class Work:
    """A loop without a thread, over a real engine in which two sequences run at a time."""

    def __init__(self, **options: object) -> None:
        self.clock = Clock()
        self.loop = Loop(make_engine(make_model(), **{"max_num_seqs": 2, **options}), log_interval=1000)  # type: ignore[arg-type]
        self.loop._pace = Pace(self.clock)

    def add(self, *names: str, num_tokens: int = 100, num_prompt_tokens: int = 6) -> None:
        params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
        for name in names:
            request = Request(name, text_prompt(random.Random(name), num_prompt_tokens), params)
            self.loop.add(RequestGroup((request,), lambda item: True))
        self.loop.take_orders(may_wait=False)
        self.loop.run_step()

    def answer(self, name: str, seconds: float) -> None:
        """A request that runs alone and ends after so long."""
        self.add(name, num_tokens=2)
        self.clock.now += seconds
        while not self.loop.is_idle:
            self.loop.run_step()


def test_nobody_is_refused_before_a_request_has_ended() -> None:
    work = Work(max_queue_wait=0.0)
    work.add("a", "b", "c", "d")
    work.clock.now += 1000
    work.loop.check_queue(5)


def test_who_would_wait_too_long_is_refused() -> None:
    work = Work(max_queue_wait=25)
    for name in ("one", "two"):
        work.answer(name, 10)
    work.clock.now += 10_000
    work.loop.check_queue(2)  # at once: two may run
    work.loop.check_queue(4)
    work.add("a", "b")
    work.loop.check_queue(2)
    with pytest.raises(OverloadedError, match="about 30 s, but may wait for 25 s") as refusal:
        work.loop.check_queue(3)
    assert refusal.value.retry_after == 5
    work.add("c", "d")
    with pytest.raises(OverloadedError):
        work.loop.check_queue(1)


def test_a_queue_before_free_places_means_a_full_cache() -> None:
    work = Work(max_queue_wait=15, num_blocks=12, max_num_seqs=4)
    work.answer("one", 10)
    work.add("a", num_tokens=4, num_prompt_tokens=30)
    work.add("b", num_tokens=4, num_prompt_tokens=30)
    stats = work.loop.engine.stats()
    assert (stats.num_running, stats.num_waiting) == (1, 1)
    with pytest.raises(OverloadedError, match="about 20 s"):
        work.loop.check_queue(1)
    for name in "ab":
        work.loop.abort(name)
    work.loop.take_orders(may_wait=False)
    work.loop.check_queue(1)  # the queue is gone, although no step has run since


def test_by_default_the_queue_is_limited_by_its_length_alone() -> None:
    work = Work()
    work.answer("one", 1000)
    work.add("a", "b", "c")
    work.loop.check_queue(200)


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_a_wait_that_is_no_time_is_refused(seconds: float) -> None:
    with pytest.raises(ConfigError, match="max_queue_wait"):
        Work(max_queue_wait=seconds)
