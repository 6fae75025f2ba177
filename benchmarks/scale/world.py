"""A simulation from its settings to its figures: workloads, fleets, and what the clients saw."""

from __future__ import annotations

import gc
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import merge
from itertools import repeat

from benchmarks.live.watch import percentile
from benchmarks.scale.clock import Clock
from benchmarks.scale.fleet import Fleet, Scaling
from benchmarks.scale.rates import Rates, Settings
from benchmarks.scale.request import Request
from benchmarks.scale.workload import Conversation, Workload, conversation, sessions


@dataclass(frozen=True, slots=True)
class Setup:
    """A simulation."""

    rates: Rates
    settings: Settings
    workloads: tuple[Workload, ...]
    """One for each region that people are in."""
    scalings: tuple[Scaling, ...]
    """One for each region that has servers."""
    policy: str = "affinity"
    start: float = 19.5 * 3600
    """The time of day at which it begins."""
    seconds: float = 3600.0
    warm_up: float = 600.0
    """The first seconds, whose requests are not counted."""
    seed: int = 1
    round_trips: tuple[tuple[float, ...], ...] = ((0.0,),)
    """Seconds from each region of people to each region of servers and back."""
    spill: float = float("inf")
    """The requests per replica from which a region passes requests on to the one with the least load."""
    drain: float = 600.0
    """The most seconds after the end that requests which have begun may take."""


@dataclass(slots=True)
class Outcome:
    """What came of a simulation."""

    requests: list[Request]
    """Those that arrived after the warm-up."""
    fleets: list[Fleet]
    seconds: float
    """The time that was counted."""
    num_unfinished: int
    kinds: Counter[str] = field(default_factory=Counter)

    @property
    def answered(self) -> list[Request]:
        """The requests with an answer."""
        return [each for each in self.requests if not each.refused]

    def ttft(self, share: float) -> float:
        """Return a percentile of the seconds to the first token."""
        return percentile([each.ttft for each in self.answered], share)

    def within(self, seconds: float) -> float:
        """Return the share of all requests that have their first token in time."""
        return sum(each.ttft <= seconds for each in self.answered) / max(1, len(self.requests) + self.num_unfinished)

    @property
    def refused(self) -> float:
        """The share of requests that were refused."""
        return sum(bool(each.refused) for each in self.requests) / max(1, len(self.requests))

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.answered) / self.seconds

    @property
    def prefix_hits(self) -> float:
        """The share of the tokens of prompts that were found in the KV cache."""
        return sum(each.num_cached for each in self.answered) / max(1, sum(each.num_tokens for each in self.answered))

    @property
    def image_hits(self) -> float:
        """The share of images in prompts that were not encoded: found by their features, or with the prefix."""
        wanted = sum(isinstance(each.source, Conversation) and each.source.image is not None for each in self.answered)
        return 1 - sum(each.num_missed for each in self.answered) / max(1, wanted)

    @property
    def pace(self) -> float:
        """The median of the tokens per second of an answer after its first."""
        long = [each for each in self.answered if each.answer > 1]
        return percentile([(each.answer - 1) / (each.ended - each.first) for each in long], 0.5)

    @property
    def adapter_loads(self) -> float:
        """The share of uses of an adapter that had to load it."""
        pools = [each.adapters for fleet in self.fleets for each in fleet.all]
        return sum(each.num_loads for each in pools) / max(1, sum(each.num_uses for each in pools))

    @property
    def replica_hours(self) -> float:
        """Hours of all replicas, from their start to their end."""
        return sum(fleet.replica_seconds for fleet in self.fleets) / 3600

    @property
    def busy(self) -> float:
        """The share of the replicas' time in steps."""
        return sum(each.busy for fleet in self.fleets for each in fleet.all) / max(
            1e-9, sum(fleet.replica_seconds for fleet in self.fleets)
        )

    @property
    def kv_use(self) -> float:
        """The highest use of a KV cache."""
        return max(each.most_used / each.prefixes.num_blocks for fleet in self.fleets for each in fleet.all)


class World:
    """Runs one simulation."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.clock = setup, Clock()
        self.clock.now = setup.start
        self.fleets = [
            Fleet(self.clock, setup.rates, setup.settings, scaling, setup.policy, setup.seed)
            for scaling in setup.scalings
        ]
        self._rng = random.Random(f"turns {setup.seed}")
        self.num_sent = 0
        for fleet in self.fleets:
            fleet.finished = self._finished

    def send(self, request: Request) -> None:
        """Send a request to the region that is nearest, or, if that has too much to do, to the one with least."""
        ways = self.setup.round_trips[request.region]
        order = sorted(range(len(self.fleets)), key=lambda index: ways[index])
        chosen = order[0]
        if self.fleets[chosen].load > self.setup.spill:
            chosen = min(order, key=lambda index: self.fleets[index].load)
        request.distance = ways[chosen]
        self.num_sent += 1
        self.fleets[chosen].send(request)

    def _finished(self, request: Request) -> None:
        source, end = request.source, self.setup.start + self.setup.seconds
        if not isinstance(source, Conversation) or request.refused or not source.turns_left:
            return
        due = request.ended + self._rng.expovariate(1 / source.workload.think)
        if due < end:
            self.clock.at(due, lambda: self.send(source.next(due)))

    def run(self) -> Outcome:
        """Run it to its end."""
        setup = self.setup
        rngs = [random.Random(f"sessions {setup.seed} {index}") for index in range(len(setup.workloads))]
        starts = merge(
            *(
                zip(sessions(workload, rng, setup.start, setup.seconds), repeat(index))
                for index, (workload, rng) in enumerate(zip(setup.workloads, rngs, strict=True))
            )
        )
        rng, number = random.Random(f"people {setup.seed}"), 0

        def begin_next() -> None:
            nonlocal number
            due = next(starts, None)
            if due is None:
                return
            time, index = due
            number += 1
            talk = conversation(setup.workloads[index], rng, number)

            def begin() -> None:
                self.send(talk.next(time))
                begin_next()

            self.clock.at(time, begin)

        begin_next()
        end = setup.start + setup.seconds
        gc.disable()  # nothing is in circles that must go while it runs
        try:
            self.clock.run(end)
            for fleet in self.fleets:
                fleet.close()
            seconds = [fleet.replica_seconds for fleet in self.fleets]
            self.clock.run(end + setup.drain)
        finally:
            gc.enable()
        for fleet, counted in zip(self.fleets, seconds, strict=True):
            fleet.replica_seconds = counted
        return self._outcome()

    def _outcome(self) -> Outcome:
        begin = self.setup.start + self.setup.warm_up
        ended: Sequence[Request] = [each for fleet in self.fleets for each in fleet.ended]
        counted = [each for each in ended if each.arrival >= begin]
        return Outcome(counted, self.fleets, self.setup.seconds - self.setup.warm_up, self.num_sent - len(ended))


def simulate(setup: Setup) -> Outcome:
    """Run a simulation and return what came of it."""
    return World(setup).run()
