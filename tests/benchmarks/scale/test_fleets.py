"""Routers, autoscaling and whole simulations: what must hold whatever the settings are."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace

import pytest

from benchmarks.scale.fleet import Scaling
from benchmarks.scale.rates import FULL_SIZE, Settings
from benchmarks.scale.routing import BOUND, POLICIES, Ring, Router
from benchmarks.scale.workload import Workload, sessions, zipf
from benchmarks.scale.world import Setup, World, simulate


@dataclass
class Loaded:
    num_outstanding: int = 0


KEYS = [f"key {number}" for number in range(4_000)]


def test_a_new_member_gets_its_share_of_keys_and_no_other_key_moves() -> None:
    ring = Ring(range(9))
    before = {key: ring.order(key)[0] for key in KEYS}
    ring.add(9)
    moved = {key for key in KEYS if ring.order(key)[0] != before[key]}
    assert {ring.order(key)[0] for key in moved} == {9}
    assert 0.05 < len(moved) / len(KEYS) < 0.15  # a tenth, as far as the points on the ring are even
    ring.remove(9)
    assert {key: ring.order(key)[0] for key in KEYS} == before


def test_a_member_that_goes_loses_its_keys_to_those_that_come_next() -> None:
    ring = Ring(range(10))
    before = {key: ring.order(key) for key in KEYS[:500]}
    ring.remove(3)
    for key, order in before.items():
        assert ring.order(key) == [member for member in order if member != 3]
        assert ring.first(key, lambda member: True) == ring.order(key)[0]
        assert ring.first(key, lambda member: member not in (0, 1)) == next(
            member for member in ring.order(key) if member not in (0, 1)
        )


def test_no_replica_gets_more_than_the_bound() -> None:
    rng, router, replicas = random.Random(1), Router("affinity"), {number: Loaded() for number in range(7)}
    for total in range(1, 3_000):
        number = router.choose(f"key {zipf(rng, 5)}", replicas)
        replicas[number].num_outstanding += 1
        assert replicas[number].num_outstanding <= BOUND * total / 7 + 1


def test_a_key_stays_with_its_replica_while_there_is_room() -> None:
    router, replicas = Router("affinity"), {number: Loaded() for number in range(7)}
    assert all(len({router.choose(key, replicas) for _ in range(3)}) == 1 for key in KEYS[:50])
    chosen = Counter(router.choose(key, replicas) for key in KEYS)
    assert set(chosen) == set(replicas)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_request_ends_and_the_books_are_even(policy: str) -> None:
    workloads = (Workload(60_000, adapters=20, swing=0.0), Workload(20_000, adapters=20, swing=0.0, region=1))
    setup = Setup(
        FULL_SIZE,
        Settings(max_num_seqs=4, max_queue=6, num_blocks=900, image_tiles=20, max_loras=3),
        workloads,
        (Scaling(2, 5, target=3, down_after=60), Scaling(1, 1)),
        policy,
        seconds=1_200,
        warm_up=0,
        round_trips=((0.01, 0.2), (0.2, 0.01)),
        spill=8,
    )
    world = World(setup)
    found = world.run()
    assert found.num_unfinished == 0
    assert world.num_sent == len(found.requests) == sum(len(fleet.ended) for fleet in world.fleets)
    assert len({id(each) for each in found.requests}) == world.num_sent > 1_500
    assert 0 < sum(bool(each.refused) for each in found.requests) < world.num_sent
    for each in found.answered:
        assert each.arrival + each.distance <= each.started + each.distance <= each.first <= each.ended
        assert each.num_cached < each.num_tokens
    for replica in (each for fleet in world.fleets for each in fleet.all):
        assert replica.num_outstanding == replica.num_running == replica.num_waiting == 0
        assert replica.prefixes.num_used == 0
        assert replica.prefixes._num_kept <= replica.prefixes.num_blocks
        assert replica.most_used <= replica.prefixes.num_blocks
        assert len(replica.adapters.names) <= 3


def test_a_simulation_is_the_same_twice() -> None:
    setup = Setup(FULL_SIZE, Settings(), (Workload(20_000),), (Scaling(3, 3),), seconds=900, warm_up=0)
    one, two = simulate(setup), simulate(setup)
    assert [each.first for each in one.requests] == [each.first for each in two.requests]
    assert simulate(replace(setup, seed=2)).ttft(0.5) != one.ttft(0.5)


def test_sessions_come_at_the_rate_of_the_hour() -> None:
    workload = Workload(200_000)
    for hour in (2, 8, 20):
        count = sum(1 for _ in sessions(workload, random.Random(hour), hour * 3600, 3600))
        expected = sum(workload.rate(hour * 3600 + second) for second in range(3600))
        assert abs(count - expected) < 4 * expected**0.5


def test_ranks_follow_zipfs_law() -> None:
    rng, number = random.Random(2), 50
    counts = Counter(zipf(rng, number) for _ in range(100_000))
    total = sum(1 / rank for rank in range(1, number + 1))
    for rank in (1, 2, 10, 50):
        share = 1 / rank / total
        assert abs(counts[rank - 1] / 100_000 - share) < 5 * (share / 100_000) ** 0.5


def test_a_fleet_scales_to_zero_and_a_request_waits_for_the_start() -> None:
    setup = Setup(
        FULL_SIZE,
        Settings(),
        (Workload(600, image_share=0, turns=1),),
        (Scaling(0, 2, down_after=60, cold_start=30),),
        start=0.0,
        seconds=86_400,
        warm_up=0,
    )
    found = simulate(setup)
    cold = [each for each in found.requests if each.waited_cold]
    assert len(cold) > 10
    assert all(each.ttft > 0 for each in cold)
    assert max(each.ttft for each in cold) > 30 > min(each.ttft for each in found.requests) > 0
    assert 0 < found.replica_hours < 24
    always = simulate(replace(setup, scalings=(Scaling(1, 1),)))
    assert always.replica_hours == pytest.approx(24)
    assert not any(each.waited_cold for each in always.requests)


def test_a_load_that_grows_brings_replicas_and_one_that_falls_ends_them() -> None:
    busy = Setup(
        FULL_SIZE,
        Settings(),
        (Workload(8_000, swing=0.9, image_share=0),),
        (Scaling(1, 20, target=0.5, down_after=120),),
        start=0.0,
        seconds=86_400,
        warm_up=0,
    )
    found = simulate(busy)
    (fleet,) = found.fleets
    assert found.num_unfinished == 0
    assert fleet.most_replicas > 3
    assert len(fleet.replicas) < fleet.most_replicas
    assert found.replica_hours < 24 * fleet.most_replicas
