"""One server: requests that wait, are admitted, computed step by step, and answered.

It plans steps as `ternvl/engine/scheduler.py` does: running answers first, then prompts in order under a budget of
tokens and tiles, tokens of an image only after its tiles. Steps that only draw tokens are counted in one go, up to the
next answer that ends or the next request that may enter. Unlike the engine, a request takes the KV blocks of its whole
answer when it is admitted, so there is no preemption, and it draws one token a step: speculation is not simulated.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Hashable
from heapq import heappop, heappush

from benchmarks.scale.caches import AdapterPool, ImageCache, PrefixCache
from benchmarks.scale.clock import Clock
from benchmarks.scale.pace import Pace
from benchmarks.scale.rates import Rates, Settings
from benchmarks.scale.request import Request


class Replica:
    """A server in a simulation."""

    def __init__(
        self, clock: Clock, rates: Rates, settings: Settings, done: Callable[[Replica, Request], None]
    ) -> None:
        """`done` is called with each request that has ended or was refused."""
        self.rates, self.settings = rates, settings
        self.prefixes = PrefixCache(settings.num_blocks, settings.block_size)
        self.images = ImageCache(settings.image_tiles)
        self.adapters = AdapterPool(settings.max_loras)
        self.num_outstanding = 0
        self.busy = 0.0
        """Seconds in steps."""
        self.most_used = 0
        """The most KV blocks in use at a time."""
        self.pace = self.http_pace = Pace()
        self._clock, self._done, self._rng = clock, done, random.Random(0)
        self._waiting: deque[Request] = deque()
        self._prefilling: list[Request] = []
        self._decoding: list[tuple[int, int, Request]] = []  # heap of the number of the last step, and an order
        self._num_steps = self._order = self._version = 0
        self._debt = 0.0  # processor time of HTTP that the next step waits for
        self._burst: tuple[float, float, int] | None = None  # start, seconds of a step, steps
        self._is_blocked = False  # the next request does not fit until another one ends

    @property
    def num_running(self) -> int:
        """Requests that have KV blocks."""
        return len(self._prefilling) + len(self._decoding)

    @property
    def num_waiting(self) -> int:
        """Requests in the engine's queue."""
        return len(self._waiting)

    def send(self, request: Request) -> None:
        """Take a request that a router has chosen this replica for."""
        self.num_outstanding += 1
        rates = self.rates
        before = self._rng.choice(rates.delays) if rates.delays else rates.before
        delay = request.distance / 2 + before + (rates.image if request.images else 0.0)
        if request.adapter is not None:
            is_there = self.adapters.acquire(request.adapter)
            if is_there is None:
                self._refuse(request, "adapters", has_adapter=False)
                return
            delay += 0.0 if is_there else self.settings.adapter_seconds
        self._clock.at(self.http_pace.end(self._clock.now, delay), lambda: self._enqueue(request))

    def _enqueue(self, request: Request) -> None:
        most = self.settings.num_blocks * self.settings.block_size
        if request.num_tokens + request.answer > most or len(self._waiting) >= self.settings.max_queue:
            self._refuse(request, "queue" if request.num_tokens + request.answer <= most else "length")
            return
        self._waiting.append(request)
        if self._version % 2 == 0:
            self._begin_step()
            return
        self._debt += self.rates.request
        if self._burst is None:
            return
        if not self._is_blocked and self.num_running < self.settings.max_num_seqs:
            self._cut_burst()

    def _refuse(self, request: Request, why: str, *, has_adapter: bool = True) -> None:
        request.refused, request.ended = why, self._clock.now
        if request.adapter is not None and has_adapter:
            self.adapters.release(request.adapter)
        self.num_outstanding -= 1
        self._done(self, request)

    # A version is odd while a step or a burst runs. An end that belongs to an older version has been replaced.

    def _begin_step(self) -> None:
        """Plan the next step, or as many as are alike, and begin it."""
        prompt_tokens, tiles, drawing = self._plan()
        if not prompt_tokens and not tiles and not self._decoding:
            return
        self._version += 1
        debt, self._debt = self._debt, 0.0
        answer_tokens = len(self._decoding) + len(drawing)
        seconds = self.rates.of_step(prompt_tokens, tiles, answer_tokens)
        if self._prefilling:
            seconds *= self._rng.choice(self.rates.noise) if self.rates.noise else 1.0
            self._burst = None
            self._end_at(self.pace.end(self._clock.now, debt + seconds), 1, drawing)
            self.busy += debt + seconds
        else:
            count = self._decoding[0][0] - self._num_steps
            began = self.pace.end(self._clock.now, debt)
            self._burst = (began, seconds, count)
            self.busy += debt
            self._end_at(self.pace.end(began, count * seconds), count, [])

    def _end_at(self, time: float, count: int, drawing: list[Request]) -> None:
        version = self._version

        def end() -> None:
            if self._version == version:
                self._end_steps(count, drawing)

        self._clock.at(time, end)

    def _cut_burst(self) -> None:
        """End the burst after the step that runs now, so that a request can enter."""
        assert self._burst is not None
        began, seconds, count = self._burst
        done = min(count, max(1, math.ceil(self.pace.work(began, self._clock.now) / seconds - 1e-9)))
        if done < count:
            self._burst = (began, seconds, done)
            self._version += 2
            self._end_at(self.pace.end(began, done * seconds), done, [])

    def _plan(self) -> tuple[int, int, list[Request]]:
        """Advance prompts by one step; return its tokens, its tiles, and the prompts that end with it."""
        tokens, tiles = self.settings.max_num_batched_tokens - len(self._decoding), self.settings.max_num_batched_tiles
        all_tokens, all_tiles = tokens, tiles
        drawing: list[Request] = []
        self._encoded_now: set[Hashable] = set()
        for request in self._prefilling:
            tokens, tiles = self._spend(request, tokens, tiles, drawing)
        while self._waiting and tokens > 0 and self.num_running < self.settings.max_num_seqs:
            if not self._admit(self._waiting[0]):
                break
            tokens, tiles = self._spend(self._waiting.popleft(), tokens, tiles, drawing)
        return all_tokens - tokens, all_tiles - tiles, drawing

    def _admit(self, request: Request) -> bool:
        lease = self.prefixes.admit(request.chain, request.num_tokens + request.answer)
        self._is_blocked = lease is None
        if lease is None:
            return False
        self.most_used = max(self.most_used, self.prefixes.num_used)
        request.lease, request.started = lease, self._clock.now
        request.num_computed = request.num_cached = lease.num_found
        request.images = tuple(each for each in request.images if each.start + each.num_tokens > lease.num_found)
        for image in request.images:
            request.num_missed += not self.images.acquire(image.digest, image.num_tiles)
        self._prefilling.append(request)
        return True

    def _spend(self, request: Request, tokens: int, tiles: int, drawing: list[Request]) -> tuple[int, int]:
        """Give a prompt what is left of the budgets, and return what is left then."""
        ready = request.num_tokens
        for image in request.images:
            missing = image.num_tiles - self.images.num_encoded(image.digest)
            count = 0 if image.digest in self._encoded_now else min(tiles, missing)
            if count:
                self._encoded_now.add(image.digest)
                self.images.encode(image.digest, count)
                tiles -= count
            if missing > count and image.start < ready:
                encoded = image.num_tiles - missing + count
                ready = image.start + encoded * (image.num_tokens // image.num_tiles)
        spent = min(tokens, max(ready - request.num_computed, 0))
        request.num_computed += spent
        if request.num_computed == request.num_tokens and spent:
            drawing.append(request)
        return tokens - spent, tiles

    def _end_steps(self, count: int, drawing: list[Request]) -> None:
        self._version += 1
        self._num_steps += count
        if self._burst is not None:
            self.busy += count * self._burst[1]
            self._burst = None
        now = self._clock.now
        for request in drawing:
            self._prefilling.remove(request)
            request.first = self.http_pace.end(now, self.rates.after) + request.distance / 2
            assert request.lease is not None
            self.prefixes.publish(request.lease, request.chain)
            for image in request.images:
                self.images.release(image.digest)
            self._order += 1
            heappush(self._decoding, (self._num_steps + request.answer - 1, self._order, request))
        while self._decoding and self._decoding[0][0] <= self._num_steps:
            self._finish(heappop(self._decoding)[2])
        self._begin_step()

    def _finish(self, request: Request) -> None:
        lease = request.lease
        assert lease is not None
        if request.then is not None:
            self.prefixes.publish(lease, [*request.chain, request.then])
        self.prefixes.release(lease)
        if request.adapter is not None:
            self.adapters.release(request.adapter)
        request.lease = None
        request.ended = self.http_pace.end(self._clock.now, self.rates.after) + request.distance / 2
        self.num_outstanding -= 1
        self._is_blocked = False
        self._done(self, request)
