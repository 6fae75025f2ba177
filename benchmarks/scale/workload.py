"""People who use a fleet: sessions over the day, conversations, images that come again, adapters.

All numbers of `Workload` but `users` are assumptions, which a reader replaces by their own.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from benchmarks.scale.request import Image, Request

DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class Workload:
    """What people do in a day."""

    users: float
    """Each has one session a day."""
    turns: float = 3.0
    """The mean number of turns of a conversation (geometric)."""
    think: float = 30.0
    """The mean seconds between an answer and the next turn (exponential)."""
    system_tokens: int = 48
    prompt_tokens: float = 60.0
    """The median of a turn's tokens (log-normal, sigma 0.7)."""
    answer_tokens: float = 100.0
    """The median of an answer's tokens (log-normal, sigma 0.5)."""
    image_share: float = 0.3
    """The share of conversations that begin with an image."""
    shared_share: float = 0.5
    """The share of images that come from a catalogue; the others are new."""
    catalogue: int = 20_000
    """The images of the catalogue, asked for by Zipf's law with exponent 1."""
    tiles: int = 1
    tokens_per_tile: int = 256
    adapters: int = 0
    """The adapters, one for each conversation, by Zipf's law with exponent 1; 0 for none."""
    swing: float = 0.6
    """How far the load goes above and below its mean over the day."""
    peak_hour: float = 20.0
    surge: tuple[float, float, float] = (0.0, 0.0, 1.0)
    """From when to when, in seconds since midnight, how many times as many people come."""
    region: int = 0

    def rate(self, time: float) -> float:
        """Return the sessions per second at a time of day, in seconds since midnight."""
        wave = math.cos(2 * math.pi * (time / DAY - self.peak_hour / 24))
        begin, end, times = self.surge
        return self.users / DAY * (1 + self.swing * wave) * (times if begin <= time < end else 1.0)

    @property
    def peak(self) -> float:
        """The requests per second at the peak."""
        return self.users / DAY * (1 + self.swing) * self.turns


@lru_cache(64)
def _zipf(number: int) -> list[float]:
    return list(accumulate(1 / rank for rank in range(1, number + 1)))


def zipf(rng: random.Random, number: int) -> int:
    """Draw a rank from 0 to `number` - 1 by Zipf's law with exponent 1."""
    sums = _zipf(number)
    return bisect_left(sums, rng.random() * sums[-1])


def _tokens(rng: random.Random, median: float, sigma: float) -> int:
    return max(1, round(rng.lognormvariate(math.log(median), sigma)))


@dataclass(slots=True, eq=False)
class Conversation:
    """A conversation in turn `turn`. The next request has all that was said before."""

    workload: Workload
    rng: random.Random
    name: str
    turns_left: int
    adapter: str | None
    image: tuple[Hashable, int] | None
    """The digest and the tiles of an image in the first turn."""
    chain: tuple[tuple[Hashable, int], ...]
    key: str
    turn: int = 0

    def next(self, now: float) -> Request:
        """Return the request of the next turn."""
        workload, images = self.workload, tuple[Image, ...]()
        self.turns_left -= 1
        self.turn += 1
        text = _tokens(self.rng, workload.prompt_tokens, 0.7)
        if self.image is not None:
            digest, tiles = self.image
            images = (Image(digest, workload.system_tokens, tiles * workload.tokens_per_tile, tiles),)
        said = (f"{self.name}/{self.turn}", text)
        answer = _tokens(self.rng, workload.answer_tokens, 0.5)
        then = (f"{self.name}/{self.turn}a", answer)
        request = Request(now, (*self.chain, said), answer, images, self.adapter, self.key, then, workload.region)
        request.source = self
        self.chain = (*self.chain, said, then)
        return request


def conversation(workload: Workload, rng: random.Random, number: int) -> Conversation:
    """Return a new conversation."""
    name = f"{workload.region}.{number}"
    turns = 1 + int(math.log(1 - rng.random()) / math.log(1 - 1 / workload.turns)) if workload.turns > 1 else 1
    adapter = f"adapter {zipf(rng, workload.adapters)}" if workload.adapters else None
    chain: list[tuple[Hashable, int]] = [((adapter, "system"), workload.system_tokens)]
    image, key = None, name if adapter is None else adapter
    if rng.random() < workload.image_share:
        is_shared = rng.random() < workload.shared_share
        digest = f"image {zipf(rng, workload.catalogue)}" if is_shared else f"image of {name}"
        image, key = (digest, workload.tiles), digest if adapter is None else adapter
        chain.append(((adapter, digest), workload.tiles * workload.tokens_per_tile))
    return Conversation(workload, rng, name, turns, adapter, image, tuple(chain), key)


def sessions(workload: Workload, rng: random.Random, start: float, seconds: float) -> Iterator[float]:
    """Yield the times at which sessions begin: a Poisson process with the day's rate, thinned."""
    most = workload.users / DAY * (1 + workload.swing) * max(1.0, workload.surge[2])
    now = start
    while (now := now + rng.expovariate(most)) < start + seconds:
        if rng.random() * most < workload.rate(now):
            yield now
