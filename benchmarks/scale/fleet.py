"""Replicas behind a router, in one region: their number follows the load, and requests find their way."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.scale.clock import Clock
from benchmarks.scale.rates import Rates, Settings
from benchmarks.scale.replica import Replica
from benchmarks.scale.request import Request
from benchmarks.scale.routing import Router


@dataclass(frozen=True, slots=True)
class Scaling:
    """How the number of replicas follows the load. With `least` = `most` it does not change."""

    least: int
    most: int
    target: float = 4.0
    """Requests per replica, running and waiting, that the autoscaler aims at."""
    every: float = 15.0
    """Seconds between two looks."""
    down_after: float = 300.0
    """Seconds for which fewer replicas must have been enough before one stops."""
    cold_start: float = 5.0
    """Seconds until a new replica takes requests."""
    spare: int = 0
    """Replicas beyond what the load asks for: a warm pool."""


class Fleet:
    """The replicas of a region."""

    def __init__(
        self, clock: Clock, rates: Rates, settings: Settings, scaling: Scaling, policy: str, seed: int = 0
    ) -> None:
        self._clock, self._rates, self._settings, self._scaling = clock, rates, settings, scaling
        self._router = Router(policy, seed)
        self.replicas: dict[int, Replica] = {}
        """Those that take requests."""
        self.all: list[Replica] = []
        self.ended: list[Request] = []
        self.replica_seconds = 0.0
        self.most_replicas = 0
        self.num_starts = 0
        self.finished: Callable[[Request], None] | None = None
        """Called with each request that has ended or was refused, if anybody wants to know."""
        self._starting = 0
        self._held: list[Request] = []
        self._changed = 0.0
        self._low_since = math.inf
        self._draining: set[Replica] = set()
        for _ in range(scaling.least):
            self._start()
        if scaling.most > scaling.least:
            clock.after(scaling.every, self._look)

    @property
    def num_alive(self) -> int:
        """Replicas that cost money: starting, working and draining."""
        return len(self.replicas) + self._starting + len(self._draining)

    @property
    def load(self) -> float:
        """Requests per replica."""
        return self._num_requests() / max(1, len(self.replicas))

    def _num_requests(self) -> int:
        return len(self._held) + sum(each.num_outstanding for each in self.replicas.values())

    def send(self, request: Request) -> None:
        """Route a request, or hold it until a replica has started."""
        if self.replicas:
            number = self._router.choose(request.key, self.replicas)
            self.replicas[number].send(request)
            return
        request.waited_cold = True
        self._held.append(request)
        if not self._starting:
            self._add(1)

    def _end(self, replica: Replica, request: Request) -> None:
        self.ended.append(request)
        if replica in self._draining and not replica.num_outstanding:
            self._count()
            self._draining.remove(replica)
        if self.finished is not None:
            self.finished(request)

    def _start(self) -> None:
        self._count()
        replica = Replica(self._clock, self._rates, self._settings, self._end)
        self.replicas[len(self.all)] = replica
        self.all.append(replica)
        held, self._held = self._held, []
        for request in held:
            self.send(request)
        self.most_replicas = max(self.most_replicas, len(self.replicas))

    def _count(self) -> None:
        """Add up the replica-seconds until now; before each change of their number."""
        self.replica_seconds += self.num_alive * (self._clock.now - self._changed)
        self._changed = self._clock.now

    def _add(self, number: int) -> None:
        self._count()
        self._starting += number
        self.num_starts += number

        def ready() -> None:
            self._count()
            self._starting -= 1
            self._start()

        for _ in range(number):
            self._clock.after(self._scaling.cold_start, ready)

    def _look(self) -> None:
        """Compare the load with the number of replicas, and change it: up at once, down after a while."""
        scaling = self._scaling
        wanted = math.ceil(self._num_requests() / scaling.target) + scaling.spare
        wanted = min(scaling.most, max(scaling.least, wanted))
        have = len(self.replicas) + self._starting
        if wanted > have:
            self._add(wanted - have)
        if wanted < have:
            self._low_since = min(self._low_since, self._clock.now)
            if self._clock.now - self._low_since >= scaling.down_after and self.replicas:
                self._stop()
        else:
            self._low_since = math.inf
        self._clock.after(scaling.every, self._look)

    def _stop(self) -> None:
        """Let the replica with the least work take no further requests; it ends with its last one."""
        number = min(self.replicas, key=lambda each: (self.replicas[each].num_outstanding, -each))
        self._count()
        replica = self.replicas.pop(number)
        if replica.num_outstanding:
            self._draining.add(replica)

    def close(self) -> None:
        """Add up the replica-seconds at the end."""
        self._count()
