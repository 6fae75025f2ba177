"""Routers: which replica gets a request."""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, Protocol

BOUND = 1.25
"""The most load of a replica under affinity, in times of the mean."""
POINTS = 64
"""The places of a replica on the ring."""


class Loaded(Protocol):
    """What a router knows of a replica."""

    num_outstanding: int


def position(text: str) -> int:
    """Return where a text stands on the ring, from 0 to 2^64 - 1."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


class Ring:
    """Consistent hashing: members that come or go move only the keys that they get or had."""

    def __init__(self, members: Sequence[int] = ()) -> None:
        self._points: list[tuple[int, int]] = []
        self.members: set[int] = set()
        for member in members:
            self.add(member)

    def add(self, member: int) -> None:
        """Add a member."""
        self.members.add(member)
        self._points = sorted([*self._points, *((position(f"{member}/{each}"), member) for each in range(POINTS))])

    def remove(self, member: int) -> None:
        """Remove a member."""
        self.members.remove(member)
        self._points = [point for point in self._points if point[1] != member]

    def order(self, key: str) -> list[int]:
        """Return all members, in the order in which a key prefers them."""
        start = bisect_right(self._points, (position(key), math.inf))
        found: dict[int, None] = {}
        for _, member in self._points[start:] + self._points[:start]:
            found[member] = None
            if len(found) == len(self.members):
                break
        return list(found)

    def first(self, key: str, allows: Callable[[int], bool]) -> int:
        """Return the first member in a key's order that is allowed, or the very first one if none is."""
        start, points, seen = bisect_right(self._points, (position(key), math.inf)), self._points, set[int]()
        for index in range(len(points)):
            member = points[(start + index) % len(points)][1]
            if member not in seen:
                if allows(member):
                    return member
                seen.add(member)
                if len(seen) == len(self.members):
                    break
        return points[start % len(points)][1]


class Router:
    """Chooses a replica for each request, by one of `POLICIES`. The replicas may change at any time."""

    def __init__(self, policy: str, seed: int = 0) -> None:
        self._choose = {
            "random": self._random,
            "round robin": self._round_robin,
            "least loaded": self._least_loaded,
            "affinity": self._affinity,
        }[policy]
        self._rng, self._turn, self._ring = random.Random(seed), 0, Ring()

    def choose(self, key: str, replicas: dict[int, Any]) -> int:
        """Return the number of one of the replicas, by their numbers."""
        return self._choose(key, replicas)

    def _random(self, key: str, replicas: dict[int, Loaded]) -> int:
        return self._rng.choice(list(replicas))

    def _round_robin(self, key: str, replicas: dict[int, Loaded]) -> int:
        self._turn += 1
        return list(replicas)[self._turn % len(replicas)]

    def _least_loaded(self, key: str, replicas: dict[int, Loaded]) -> int:
        self._turn += 1
        numbers, shift = list(replicas), self._turn % len(replicas)
        return min(numbers[shift:] + numbers[:shift], key=lambda number: replicas[number].num_outstanding)

    def _affinity(self, key: str, replicas: dict[int, Loaded]) -> int:
        """Consistent hashing with bounded load (Mirrokni, Thorup and Zadimoghaddam, 2016)."""
        if not key:
            return self._least_loaded(key, replicas)
        if self._ring.members != replicas.keys():
            for gone in self._ring.members - replicas.keys():
                self._ring.remove(gone)
            for new in replicas.keys() - self._ring.members:
                self._ring.add(new)
        total = 1 + sum(each.num_outstanding for each in replicas.values())
        most = math.ceil(BOUND * total / len(replicas))
        return self._ring.first(key, lambda number: replicas[number].num_outstanding < most)


POLICIES = ("random", "round robin", "least loaded", "affinity")
