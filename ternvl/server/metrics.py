"""The metrics of `GET /metrics`: the engine's counters, the number and times of requests, and a port of their own."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ternvl.answer.delta import Delta
from ternvl.engine.stats import EngineStats
from ternvl.server.errors import HTTPError

PATH = "/metrics"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80)
_BETWEEN_TOKENS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
_REQUEST = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)

_GAUGES = {
    "num_running": "Number of running sequences.",
    "num_waiting": "Number of sequences in the queue.",
    "num_blocks": "Number of blocks of the KV cache.",
    "num_free_blocks": "Number of blocks of the KV cache that no sequence uses.",
    "num_cached_blocks": "Number of free blocks that the prefix cache still holds.",
}
_COUNTERS = {
    "num_steps": "Number of steps of the engine.",
    "num_prompt_tokens": "Number of tokens of prompts that the scheduler admitted.",
    "num_prefix_hit_tokens": "Number of prompt tokens found in the prefix cache.",
    "num_generated_tokens": "Number of generated tokens.",
    "num_draft_tokens": "Number of tokens guessed by speculation.",
    "num_accepted_tokens": "Number of guessed tokens that were accepted.",
    "num_image_lookups": "Number of images looked up in the image cache.",
    "num_image_hits": "Number of images found in the image cache.",
    "num_encoded_tiles": "Number of encoded image tiles.",
    "num_preemptions": "Number of preempted sequences.",
}


class _EngineCollector(Collector):
    """Reads the engine's own counters at each scrape."""

    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        for name, text in _GAUGES.items():
            yield GaugeMetricFamily(f"ternvl_engine_{name.removeprefix('num_')}", text, value=getattr(stats, name))
        for name, text in _COUNTERS.items():
            yield CounterMetricFamily(f"ternvl_engine_{name.removeprefix('num_')}", text, value=getattr(stats, name))


class Metrics:
    """The metrics of one server."""

    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        """`stats` returns the engine's counters and may be called from any thread."""
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(stats))
        registry = self._registry
        self.requests = Counter(
            "ternvl_requests", "Number of answered requests.", ("endpoint", "status"), registry=registry
        )
        self.seconds = Histogram(
            "ternvl_request_seconds",
            "Seconds from the first byte of a request to the last byte of its answer.",
            ("endpoint",),
            buckets=_REQUEST,
            registry=registry,
        )
        self.first_token = Histogram(
            "ternvl_time_to_first_token_seconds",
            "Seconds from a request to its first token, including images and the queue.",
            buckets=_FIRST_TOKEN,
            registry=registry,
        )
        self.between_tokens = Histogram(
            "ternvl_inter_token_seconds",
            "Seconds from one token of an answer to the next.",
            buckets=_BETWEEN_TOKENS,
            registry=registry,
        )
        self.prompt_tokens = Counter("ternvl_prompt_tokens", "Number of tokens of answered prompts.", registry=registry)
        self.answer_tokens = Counter("ternvl_generation_tokens", "Number of tokens of answers.", registry=registry)
        self.finished = Counter(
            "ternvl_answers", "Number of answers that ended.", ("finish_reason",), registry=registry
        )

    def meter(self) -> Meter:
        """Return the meter of a request that begins now."""
        return Meter(self)

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class Meter:
    """Measures one request: its tokens, and the times between them."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._started = time.perf_counter()
        self._last: dict[int, float] = {}

    async def watch(self, deltas: AsyncGenerator[Delta], num_prompt_tokens: int) -> AsyncGenerator[Delta]:
        """Yield the deltas and record their times. Closing this generator closes `deltas`."""
        async with aclosing(deltas):
            async for delta in deltas:
                if not self._last:
                    self._metrics.prompt_tokens.inc(num_prompt_tokens)
                self._count(delta)
                yield delta

    def _count(self, delta: Delta) -> None:
        now, metrics = time.perf_counter(), self._metrics
        last = self._last.get(delta.index)
        if last is None:
            metrics.first_token.observe(now - self._started)
        else:
            for _ in range(delta.num_tokens):  # the time of a delta is divided among its tokens
                metrics.between_tokens.observe((now - last) / delta.num_tokens)
        self._last[delta.index] = now
        metrics.answer_tokens.inc(delta.num_tokens)
        if delta.finish_reason:
            metrics.finished.labels(delta.finish_reason).inc()


ENDPOINT = "ternvl.endpoint"
"""The key of an ASGI scope for the endpoint's path.

Requests without it count as "other", so that unknown paths do not create time series.
"""


class Measured:
    """ASGI middleware that counts and times the answers of each endpoint by their status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and measure its time."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started, status = time.perf_counter(), 499

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            endpoint = scope.get(ENDPOINT, "other")
            self._metrics.requests.labels(endpoint, str(status)).inc()
            self._metrics.seconds.labels(endpoint).observe(time.perf_counter() - started)


class Ports:
    """ASGI middleware that answers 404 to `/metrics` on the server's port, and to all else on that of the metrics."""

    def __init__(self, app: ASGIApp, metrics_port: Callable[[], int | None]) -> None:
        """`metrics_port` returns the port of the metrics, which is known once it is bound; None if it has none."""
        self._app = app
        self._metrics_port = metrics_port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on requests that came to the port of their path."""
        port = self._metrics_port()
        if scope["type"] != "http" or port is None:
            return await self._app(scope, receive, send)
        came_to_metrics = (scope.get("server") or ("", None))[1] == port
        if came_to_metrics == (scope["path"] == PATH):
            return await self._app(scope, receive, send)
        where = f"only {PATH} is served on this port" if came_to_metrics else f"{PATH} is served on another port"
        await HTTPError(404, f"There is no endpoint {scope['path']}; {where}.").response(scope)(scope, receive, send)
