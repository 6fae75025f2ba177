"""The simulation of the two servers of a validation, whose caches last from one run to the next."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.scale.clock import Clock
from benchmarks.scale.pace import Pace
from benchmarks.scale.rates import Rates, Settings
from benchmarks.scale.replica import Replica
from benchmarks.scale.request import Request
from benchmarks.scale.routing import Router
from benchmarks.scale.validation.probe import Paces
from benchmarks.scale.validation.script import again


class Twin:
    """Two replicas that get what two servers got."""

    def __init__(self, settings: Settings) -> None:
        self.clock = Clock()
        self.replicas = {number: self._replica(settings) for number in range(2)}
        self._ended: list[Request] = []

    def _replica(self, settings: Settings) -> Replica:
        return Replica(self.clock, Rates(1.0), settings, lambda _, request: self._ended.append(request))

    def run(
        self, requests: Sequence[Request], policy: str, seed: int, rates: Rates, paces: Sequence[Paces] = ()
    ) -> list[Request]:
        """Send requests at their times, at the servers' paces; return them as they ended."""
        router, self._ended = Router(policy, seed), []
        self.clock.now = -1.0  # the caches stay, time begins anew
        for number, replica in self.replicas.items():
            given = paces[number] if paces else Paces(Pace(), Pace())
            replica.rates, replica.pace, replica.http_pace = rates, given.engine, given.http

        def send(request: Request) -> None:
            self.replicas[router.choose(request.key, self.replicas)].send(request)

        for request in again(requests):
            self.clock.at(request.arrival, lambda request=request: send(request))  # type: ignore[misc]
        self.clock.run()
        return self._ended

    def image_hits(self) -> tuple[int, int]:
        """Return the hits and the lookups of the image caches so far."""
        caches = [each.images for each in self.replicas.values()]
        return sum(each.num_hits for each in caches), sum(each.num_lookups for each in caches)
