"""The questions of docs/scale.md, each as simulations whose figures come back as rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from benchmarks.scale.fleet import Scaling
from benchmarks.scale.models import Model
from benchmarks.scale.workload import Workload
from benchmarks.scale.world import Outcome, Setup, simulate

Row = dict[str, Any]
POD = 20.0
"""Seconds, assumed, that a cluster takes to place a replica on a machine that has the image, beside the server's own
start."""
NODE = 120.0
"""The same for a machine that has to be started first, assumed."""
REFUSED = 0.001
"""The most refused requests where a fleet is large enough."""


def fixed(model: Model, workload: Workload, number: int, policy: str = "affinity", **others: Any) -> Outcome:
    """Simulate a fleet of a fixed size around the peak."""
    return simulate(Setup(model.rates, model.settings, (workload,), (Scaling(number, number),), policy, **others))


def is_enough(model: Model, found: Outcome) -> bool:
    """Return whether a fleet answers in time at the peak."""
    is_fast = found.ttft(0.99) <= model.bar and found.pace >= model.pace
    return is_fast and found.refused <= REFUSED and not found.num_unfinished


def least_fleet(model: Model, workload: Workload, policy: str) -> tuple[int, Outcome]:
    """Return the smallest fleet that is enough at the peak, and what it does.

    Raises ValueError if not even twenty times as many replicas as the work takes are enough.
    """
    one = fixed(model, replace(workload, users=min(workload.users, 2_000)), 1, policy)
    share = one.busy * workload.users / min(workload.users, 2_000)
    number, seconds = max(1, math.ceil(0.5 * share)), 3_600.0 if workload.users <= 300_000 else 1_500.0
    found, most = fixed(model, workload, number, policy, seconds=seconds), 20 * number
    while not is_enough(model, found):
        if number > most:
            raise ValueError(f"{number} replicas miss {model.bar:g} s, as any number would: raise the bar.")
        number = max(number + 1, math.ceil(1.12 * number))
        found = fixed(model, workload, number, policy, seconds=seconds)
    while number > 1 and is_enough(model, fewer := fixed(model, workload, number - 1, policy, seconds=seconds)):
        number, found = number - 1, fewer
    return number, found


def sizes(model: Model) -> list[Row]:
    """How many replicas do so many users need, and what do they find in caches?"""
    rows = []
    for users, part in model.parts:
        for policy in ("least loaded", "affinity"):
            workload = model.workload(users * part)
            number, found = least_fleet(model, workload, policy)
            peak = number / part
            hours = sum(
                max(1 / part, math.ceil(number * workload.rate(3600 * (hour + 0.5)) / workload.rate(20 * 3600)) / part)
                for hour in range(24)
            )
            rows.append({
                "users": users, "policy": policy, "replicas": round(peak), "flat_hours": 24 * peak, "hours": hours,
                **seen(found),
            })  # fmt: skip
    return rows


def seen(found: Outcome) -> Row:
    """Return what a table shows of a simulation."""
    return {
        "p50": found.ttft(0.5), "p99": found.ttft(0.99), "prefix": found.prefix_hits, "image": found.image_hits,
        "busy": found.busy, "refused": found.refused, "rate": found.rate, "kv": found.kv_use,
        "requests": len(found.requests), "pace": found.pace,
    }  # fmt: skip


def slices(model: Model, number: int, total: float = 1e7) -> list[Row]:
    """Does the result depend on the part that is simulated? A hundredth of all users has `number` replicas."""
    rows = []
    for part in (0.002, 0.005, 0.01, 0.02, 0.04):
        replicas, users = max(1, round(number * part / 0.01)), total * part
        found = fixed(model, model.workload(users), replicas)
        rows.append({"part": part, "users": users, "replicas": replicas, **seen(found)})
    return rows


def affinity(model: Model, users: float, number: int) -> list[Row]:
    """When does affinity pay? The same load and fleet, with other people."""
    plain = model.workload(users)
    cases = {
        "as above": plain,
        "no images, one turn": replace(plain, image_share=0, turns=1, users=3 * users),
        "no images, long conversations (8 turns)": replace(plain, image_share=0, turns=8, users=users * 3 / 8),
        "every image is new": replace(plain, shared_share=0),
        "every image is of a catalogue of 2,000": replace(plain, shared_share=1, catalogue=2_000),
        "one turn, every image of that catalogue": replace(
            plain, shared_share=1, catalogue=2_000, turns=1, users=3 * users
        ),
    }
    rows = []
    for name, workload in cases.items():
        for policy in ("round robin", "least loaded", "affinity"):
            rows.append({"case": name, "policy": policy, **seen(fixed(model, workload, number, policy))})
    return rows


LOADS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1)


def first_failure(model: Model, number: int) -> list[Row]:
    """What fails first as the load rises? Loads are in times of the most answers per second that a fleet gives."""
    plain = model.workload(1.0)
    blocks = model.settings.num_blocks
    cases = {
        "people as above": (plain, model),
        "texts alone": (replace(plain, image_share=0), model),
        "texts of 4,000 tokens, 64 slots, half the KV cache": (
            replace(plain, image_share=0, prompt_tokens=4_000, answer_tokens=400, turns=1),
            replace(model, settings=replace(model.settings, max_num_seqs=64, num_blocks=blocks // 2)),
        ),
        "an image of 7 tiles in every conversation": (replace(plain, image_share=1, tiles=7), model),
    }
    rows = []
    for name, (workload, each) in cases.items():
        users = most_users(each, workload, number)
        for load in LOADS:
            found = fixed(each, replace(workload, users=users * load), number, seconds=1_500)
            rows.append({"case": name, "load": load, "users": users * load, **seen(found)})
    return rows


def most_users(model: Model, workload: Workload, number: int) -> float:
    """Return the users whose requests at the peak are as many as a fleet answers if it always has more to do."""
    users, rate = 1_000.0 * number, 0.0
    while True:
        found = fixed(model, replace(workload, users=users), number, seconds=1_200)
        if found.rate < 1.03 * rate:
            return max(rate, found.rate) / replace(workload, users=1.0).peak
        users, rate = 1.5 * users, found.rate


def adapters(model: Model, users: float, number: int, total: int = 64) -> list[Row]:
    """How many adapters should a replica hold?"""
    rows = []
    for most in (1, 2, 4, 8, 16, 32):
        limited = replace(model, settings=replace(model.settings, max_loras=most))
        for policy in ("least loaded", "affinity"):
            found = fixed(limited, model.workload(users, adapters=total), number, policy)
            rows.append({"most": most, "policy": policy, "loads": found.adapter_loads, **seen(found)})
    return rows


def warm_pools(model: Model, users: float, number: int) -> list[Row]:
    """What do spare replicas gain if four times as many people come at once? Counted are the first ten minutes."""
    begin = 14.5 * 3600
    workload = model.workload(users, surge=(begin, begin + 3600, 4.0))
    rows = []
    for what, start in (("process", model.ready), ("pod", model.ready + POD), ("machine", model.ready + POD + NODE)):
        for target, spare in ((4, 0), (10, 0), (10, max(1, number // 2)), (10, 2 * number)):
            scaling = Scaling(2, 10 * number, target=target, cold_start=start, spare=spare)
            setup = Setup(
                model.rates, model.settings, (workload,), (scaling,), start=begin - 3_600, seconds=4_200, warm_up=3_600
            )
            found = simulate(setup)
            rows.append({
                "what": what, "cold": start, "target": target, "spare": spare,
                "hours": found.replica_hours / (4_200 / 3_600), "within": found.within(model.bar),
                "most": found.fleets[0].most_replicas, **seen(found),
            })  # fmt: skip
    return rows


def to_zero(model: Model, users: float = 1_000) -> list[Row]:
    """What does it save to stop the only replica while nobody asks?"""
    rows = []
    day: dict[str, Any] = {"start": 0.0, "seconds": 86_400.0, "warm_up": 0.0}
    for name, least, after in (
        ("always one", 1, 0.0),
        ("30 minutes", 0, 1800.0),
        ("5 minutes", 0, 300.0),
        ("1 minute", 0, 60.0),
    ):
        for start in (model.ready, model.ready + POD):
            if least and start > model.ready:
                continue
            scaling = Scaling(least, 4, down_after=after or 300.0, cold_start=start)
            found = simulate(Setup(model.rates, model.settings, (model.workload(users),), (scaling,), **day))
            cold = sum(each.waited_cold for each in found.requests) / max(1, len(found.requests))
            rows.append({
                "policy": name, "cold": start, "share": cold, "hours": found.replica_hours,
                "starts": found.fleets[0].num_starts, **seen(found),
            })  # fmt: skip
    return rows


FAR = ((0.02, 0.12, 0.22), (0.12, 0.02, 0.18), (0.22, 0.18, 0.02))
"""Seconds from people of a region to servers of a region and back, assumed."""


def regions(model: Model, users: float, number: int) -> list[Row]:
    """Is one region enough? A third of the people live eight hours apart from each other third."""
    people = tuple(
        model.workload(users / 3, peak_hour=hour, region=region) for region, hour in enumerate((20.0, 12.0, 4.0))
    )
    own = Scaling(1, 4 * number, target=2.5, cold_start=model.ready + POD)
    cases: dict[str, tuple[tuple[Scaling, ...], tuple[tuple[float, ...], ...], float]] = {
        "one region for all": ((replace(own, least=2),), tuple((way[0],) for way in FAR), math.inf),
        "three regions, each for its own": ((own,) * 3, FAR, math.inf),
        "three regions that help each other": ((own,) * 3, FAR, 4.0),
    }
    rows = []
    for name, (scalings, ways, spill) in cases.items():
        setup = Setup(
            model.rates, model.settings, people, scalings, start=0.0, seconds=86_400.0, warm_up=3_600.0,
            round_trips=ways, spill=spill,
        )  # fmt: skip
        found = simulate(setup)
        most = sum(fleet.most_replicas for fleet in found.fleets)
        rows.append({"case": name, "hours": found.replica_hours, "most": most, **seen(found)})
    return rows


QUESTIONS: tuple[Callable[..., list[Row]], ...] = (
    sizes, slices, affinity, first_failure, adapters, warm_pools, to_zero, regions
)  # fmt: skip
