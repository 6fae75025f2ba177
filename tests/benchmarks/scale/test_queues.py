"""The simulator against results of queueing theory that are known exactly, and against plain accounting."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable

import pytest

from benchmarks.scale.clock import Clock
from benchmarks.scale.pace import Pace
from benchmarks.scale.rates import Rates, Settings
from benchmarks.scale.replica import Replica
from benchmarks.scale.request import Image, Request

ONE_AT_A_TIME = Settings(max_num_seqs=1, max_queue=10**6, num_blocks=10**6)
SERVICE, LOAD, NUM = 1.0, 0.7, 40_000


def waits(service: Callable[[random.Random], int], rates: Rates, seed: int) -> list[float]:
    """The seconds that requests wait for a server that answers one at a time, at a load of `LOAD`."""
    rng, clock, ended = random.Random(seed), Clock(), list[Request]()
    replica = Replica(clock, rates, ONE_AT_A_TIME, lambda _, request: ended.append(request))
    now = 0.0
    for number in range(NUM):
        now += rng.expovariate(LOAD / SERVICE)
        request = Request(now, [(number, 1)], service(rng))
        clock.at(now, lambda request=request: replica.send(request))  # type: ignore[misc]
    clock.run()
    assert len(ended) == NUM
    return [request.started - request.arrival for request in ended[NUM // 20 :]]


def interval(values: list[float]) -> tuple[float, float]:
    """A confidence interval of 99.9 % of the mean, by batches, because successive waits depend on each other."""
    size = len(values) // 20
    means = [statistics.mean(values[start : start + size]) for start in range(0, size * 20, size)]
    half = 3.88 * statistics.stdev(means) / math.sqrt(len(means))  # Student's t for 19 degrees of freedom
    return statistics.mean(values) - half, statistics.mean(values) + half


def test_the_wait_is_that_of_a_queue_with_constant_service() -> None:
    """M/D/1: load x service / (2 (1 - load))."""
    low, high = interval(waits(lambda rng: 10, Rates(SERVICE / 10), seed=1))
    exact = LOAD * SERVICE / (2 * (1 - LOAD))
    assert low < exact < high
    assert high - low < 0.25 * exact


def test_the_wait_is_that_of_a_queue_with_exponential_service() -> None:
    """M/M/1: load x service / (1 - load). Geometric numbers of short steps are exponential but for their length."""
    step = 0.001
    low, high = interval(waits(lambda rng: 1 + int(rng.expovariate(step / SERVICE)), Rates(step), seed=2))
    exact = LOAD * SERVICE / (1 - LOAD)
    assert low < exact < high
    assert high - low < 0.35 * exact


def test_many_servers_share_a_queue_of_slots() -> None:
    """Little's law: the mean number in the system is the rate times the mean time in it."""
    rng, clock, ended = random.Random(3), Clock(), list[Request]()
    settings = Settings(max_num_seqs=4, num_blocks=10**5)
    replica = Replica(clock, Rates(0.01, 0.0001, answer_token=0.002), settings, lambda _, each: ended.append(each))
    now, area, seen = 0.0, 0.0, (0.0, 0)
    for number in range(4_000):
        now += rng.expovariate(2.0)
        request = Request(now, [(number, rng.randrange(10, 400))], rng.randrange(1, 60))
        clock.at(now, lambda request=request: replica.send(request))  # type: ignore[misc]
    events = 0
    while clock._actions:
        clock.run(clock._actions[0][0])
        area += seen[1] * (clock.now - seen[0])
        seen = (clock.now, replica.num_outstanding)
        events += 1
    assert len(ended) == 4_000
    assert area == pytest.approx(sum(each.ended - each.arrival for each in ended), rel=1e-6)
    assert events < 30 * len(ended)


def test_a_step_takes_what_its_work_takes() -> None:
    """By hand: two steps of a prompt of 300 tokens, whose image of two tiles delays its tokens, then two more."""
    clock, ended = Clock(), list[Request]()
    rates = Rates(step=1.0, prompt_token=0.01, tile=2.0, answer_token=0.5, request=0.25, before=0.1, after=0.2)
    replica = Replica(clock, rates, Settings(), lambda _, each: ended.append(each))
    replica.send(Request(0.0, [("a", 300)], 3, (Image("i", 20, 32, 2),)))
    clock.run()
    first = 0.1 + (1 + 2 + 36 * 0.01)  # one tile a step: 20 tokens before the image and 16 of its first tile
    second = first + (1 + 2 + 256 * 0.01)
    third = second + (1 + 8 * 0.01 + 0.5)
    assert ended[0].first == pytest.approx(third + 0.2)
    assert ended[0].ended == pytest.approx(third + 2 * 1.5 + 0.2)


def test_a_request_that_comes_during_steps_enters_after_the_one_that_runs() -> None:
    clock, ended = Clock(), list[Request]()
    replica = Replica(clock, Rates(step=1.0), Settings(), lambda _, each: ended.append(each))
    first, second = Request(0.0, [("a", 8)], 10), Request(3.5, [("b", 8)], 2)
    for each in (first, second):
        clock.at(each.arrival, lambda each=each: replica.send(each))  # type: ignore[misc]
    clock.run()
    assert (first.first, second.first, second.ended, first.ended) == (1.0, 5.0, 6.0, 10.0)


def test_http_delays_the_step_after_the_one_that_runs() -> None:
    clock, ended = Clock(), list[Request]()
    replica = Replica(clock, Rates(step=1.0, request=0.25), Settings(), lambda _, each: ended.append(each))
    for at in (0.0, 2.5):
        clock.at(at, lambda at=at: replica.send(Request(at, [(at, 8)], 4)))  # type: ignore[misc]
    clock.run()
    assert [each.first for each in ended] == [1.0, 4.25]
    assert [each.ended for each in ended] == [4.25, 7.25]


def test_a_slow_processor_makes_everything_later() -> None:
    clock, ended = Clock(), list[Request]()
    replica = Replica(clock, Rates(step=1.0), Settings(), lambda _, each: ended.append(each))
    replica.pace = Pace([0.0, 2.0, 6.0], [1.0, 0.5])
    replica.send(Request(0.0, [("a", 8)], 5))
    clock.run()
    assert ended[0].ended == 7.0  # two steps, then two at half the speed, then one
    pace = replica.pace
    assert [pace.end(0, work) for work in (1, 2, 3, 4, 5)] == [1, 2, 4, 6, 7]
    assert [pace.work(1, each) for each in (2, 4, 7)] == [1, 2, 4]
    assert pace.mean == pytest.approx(4 / 6)


def test_what_cannot_be_served_is_refused_and_counted() -> None:
    clock, ended = Clock(), list[Request]()
    settings = Settings(max_num_seqs=1, max_queue=2, num_blocks=10, max_loras=1)
    replica = Replica(clock, Rates(1.0), settings, lambda _, each: ended.append(each))
    for number in range(5):
        replica.send(Request(0.0, [(number, 16)], 4))
    replica.send(Request(0.0, [("long", 200)], 4))
    for name in ("one", "two"):
        replica.send(Request(0.0, [(name, 16)], 4, adapter=name))
    clock.run()
    assert sorted(each.refused for each in ended).count("") + sum(bool(each.refused) for each in ended) == 8
    assert {each.refused for each in ended} == {"", "queue", "length", "adapters"}
    assert replica.num_outstanding == replica.num_running == replica.num_waiting == replica.prefixes.num_used == 0
