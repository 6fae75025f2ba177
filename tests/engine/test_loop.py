"""Who is refused because of the time that a request would wait, on a clock that the test turns."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest

from ternvl.engine.admission.backlog import Backlog
from ternvl.engine.engine import Engine
from ternvl.engine.loop import Loop
from ternvl.engine.request import Request, RequestGroup
from ternvl.engine.schedule import Schedule
from ternvl.errors import ConfigError, OverloadedError
from ternvl.params import SamplingParams
from ternvl.types import Prompt
from tests.engine.test_stats import Clock
from tests.engine.tiny import image_prompt, make_engine, make_model, text_prompt

STEP, PROMPT_TOKEN, TILE, ANSWER_TOKEN = 0.5, 0.01, 3.0, 0.25
"""Seconds of the machine that the clock stands for."""


class Work:
    """A loop without a thread, over a real engine in which two sequences run at a time, on a machine of known speed."""

    def __init__(self, **options: object) -> None:
        self.clock = Clock()
        options = {"max_num_seqs": 2, "max_num_batched_tiles": 1, "speculation": "off", **options}
        engine = make_engine(make_model(), **options)  # type: ignore[arg-type]
        engine._run = partial(self._run, engine._run)  # type: ignore[method-assign, assignment]
        self.loop = Loop(engine, log_interval=1000, clock=self.clock)

    def _run(self, run: Callable[[Schedule], object], schedule: Schedule) -> object:
        decoding = sum(chunk.decodes for chunk in schedule.chunks)
        self.clock.now += STEP + PROMPT_TOKEN * sum(chunk.num_tokens for chunk in schedule.chunks if not chunk.decodes)
        self.clock.now += TILE * len(schedule.tiles)
        self.clock.now += ANSWER_TOKEN * max(decoding, len(schedule.sampling))
        return run(schedule)

    def add(self, *names: str, num_tokens: int = 100, prompt: Prompt | None = None, sibling: str | None = None) -> None:
        """Requests in the queue; no step runs."""
        params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
        for name in names:
            request = Request(name, prompt or text_prompt(random.Random(name), 6), params, sibling_of=sibling)
            self.loop.add(RequestGroup((request,), lambda item: True))
        self.loop.take_orders(may_wait=False)

    def learn(self) -> None:
        """Answers of 10 tokens, one of them to an image, so that all rates are known."""
        for number, tiles in enumerate([(), (2,), (), ()]):
            self.add(f"known {number}", num_tokens=10, prompt=image_prompt(random.Random(number), tiles))
            self.loop.run_step()
        while not self.loop.is_idle:
            self.loop.run_step()

    def backlog(self, *, has_images: bool = True) -> Backlog:
        return self.loop.engine.backlog(has_images=has_images)

    def measured_wait(self, prompt: Prompt) -> float:
        """The seconds until work on a request that is added now begins."""
        self.add("measured", num_tokens=1, prompt=prompt)
        engine = self.loop.engine
        assert isinstance(engine, Engine)
        began = last = self.clock.now
        while any(each.id == "measured" for each in engine.scheduler.waiting) or (
            prompt.images and not engine.scheduler.tiles.is_encoded(prompt.images[0].tile_keys[0])
        ):
            last = self.clock.now
            self.loop.run_step()
        return last - began


def test_nobody_is_refused_before_an_answer_has_ended() -> None:
    work = Work(max_queue_wait=0.0)
    work.add("a", "b", "c", "d")
    work.loop.run_step()
    work.loop.check_queue(5)


def test_who_would_wait_too_long_is_refused() -> None:
    work = Work(max_queue_wait=15)
    work.learn()
    work.clock.now += 10_000
    work.loop.check_queue(9)  # the first of them begins at once
    work.add("a", "b")
    work.loop.run_step()
    work.loop.check_queue(1)  # each has about 10 tokens to go, which take 10 s
    work.add("c", "d")
    with pytest.raises(OverloadedError, match="would wait for about 19 s, but may wait for 15 s") as refusal:
        work.loop.check_queue(1)
    assert refusal.value.retry_after == 5


def test_one_large_request_counts_as_what_it_costs_and_many_small_ones_as_what_they_cost() -> None:
    work = Work(max_queue_wait=20, max_num_seqs=8, num_blocks=400)
    work.learn()
    work.add(*"abcdef", num_tokens=1)
    work.loop.check_queue(1)
    work.add("large", num_tokens=1, prompt=image_prompt(random.Random(0), (12,)))
    work.loop.check_queue(1)  # a text need not wait for the tiles
    with pytest.raises(OverloadedError, match="about 43 s"):
        work.loop.check_queue(1, has_images=True)


def test_what_is_cached_or_encoded_or_shared_is_no_work() -> None:
    work = Work(max_queue_wait=9, max_num_seqs=8, num_blocks=400)
    work.learn()
    prompt = image_prompt(random.Random(0), (12,))
    work.add("first", num_tokens=1, prompt=prompt)
    alone = work.backlog()
    assert (alone.num_tokens, alone.num_tiles) == (prompt.num_tokens, 12)
    work.loop.engine.config = replace(work.loop.engine.config, max_queue_wait=None)
    work.add("same image", num_tokens=1, prompt=prompt)
    assert work.backlog().num_tiles == 12
    work.add("choice", num_tokens=1, prompt=prompt, sibling="first")
    assert work.backlog().num_tokens == 2 * prompt.num_tokens
    while not work.loop.is_idle:
        work.loop.run_step()
    work.add("again", num_tokens=1, prompt=prompt)
    again = work.backlog()
    assert again.num_tiles == 0
    assert again.num_tokens <= 4, "one block"


def test_a_full_cache_leaves_fewer_slots() -> None:
    work = Work(num_blocks=12, max_num_seqs=4)
    work.add("a", num_tokens=4, prompt=text_prompt(random.Random(1), 30))
    work.add("b", num_tokens=4, prompt=text_prompt(random.Random(2), 30))
    work.loop.run_step()
    stats = work.loop.engine.stats()
    assert (stats.num_running, stats.num_waiting) == (1, 1)
    assert work.backlog().num_slots == 1
    for name in "ab":
        work.loop.abort(name)
    work.loop.take_orders(may_wait=False)
    assert work.backlog().num_slots == 4


@pytest.mark.parametrize("has_images", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_the_wait_is_the_one_that_is_measured(seed: int, has_images: bool) -> None:
    rng = random.Random(seed)
    work = Work(max_num_seqs=rng.choice((1, 2, 5)), num_blocks=120, max_queue_wait=1e6)
    work.learn()
    for number in range(rng.randrange(2, 9)):
        tiles = rng.choice([(), (), (1,), (4,)])
        work.add(f"r{number}", num_tokens=10, prompt=image_prompt(rng, tiles, gap=rng.randrange(2, 30)))
    predicted = work.loop._forecast.wait(work.backlog(has_images=has_images))
    prompt = image_prompt(rng, (1,) if has_images else ())
    assert predicted == pytest.approx(work.measured_wait(prompt), rel=0.25, abs=STEP + TILE)


def test_by_default_the_queue_is_limited_by_its_length_alone() -> None:
    work = Work()
    work.learn()
    work.clock.now += 1000
    work.add("a", "b", "c")
    work.loop.run_step()
    work.loop.check_queue(200)


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_a_wait_that_is_no_time_is_refused(seconds: float) -> None:
    with pytest.raises(ConfigError, match="max_queue_wait"):
        Work(max_queue_wait=seconds)
