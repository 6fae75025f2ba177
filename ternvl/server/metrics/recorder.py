"""Records metrics under the names that are asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ternvl.engine.stats import EngineStats
from ternvl.server.metrics import families
from ternvl.server.metrics.families import Family

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_MAX_MODELS = 256
"""The most values of the label of the model; adapters may come and go without end."""
_OTHER = "other"


@dataclass(frozen=True, slots=True)
class Served:
    """What a server's metrics say of the server itself."""

    model: str
    info: Mapping[str, str]
    """Of the build: version, instruction set and so on."""
    cache: Mapping[str, str]
    """Of the KV cache: the number of its blocks and so on."""
    max_adapters: int
    """The most adapters in memory."""


@dataclass(frozen=True, slots=True)
class _Style:
    """A family of names, and the labels that all of its metrics have."""

    prefix: str
    model_label: str
    fixed: Mapping[str, str]

    def name(self, family: Family) -> str | None:
        name = family.vllm if self.prefix == "vllm:" else family.ternvl
        return name and self.prefix + name

    def labels(self, model: str) -> dict[str, str]:
        return {self.model_label: model, **self.fixed}


_STYLES = {"ternvl": _Style("ternvl_", "model", {}), "vllm": _Style("vllm:", "model_name", {"engine": "0"})}


class Metrics:
    """The metrics of one server."""

    def __init__(self, stats: Callable[[], EngineStats], served: Served, names: str = "ternvl") -> None:
        """`stats` returns the engine's counters, for any thread. `names` is one of `METRICS_NAMES`."""
        self._registry = CollectorRegistry()
        self._styles = [style for name, style in _STYLES.items() if names in (name, "both")]
        self._registry.register(_EngineCollector(stats, served, self._styles))
        self._models: set[str] = set()
        self._children: dict[tuple[str, ...], list[Any]] = {}
        self._histograms = {key: self._made(Histogram, family) for key, family in families.HISTOGRAMS.items()}
        self._counters = {key: self._made(Counter, family) for key, family in families.COUNTERS.items()}
        self.requests = Counter(
            "ternvl_requests", "Number of answered requests.", ("endpoint", "status"), registry=self._registry
        )
        self.seconds = Histogram(
            "ternvl_request_seconds",
            "Seconds from the first byte of a request to the last byte of its answer.",
            ("endpoint",),
            buckets=families.HISTOGRAMS["answer"].buckets,
            registry=self._registry,
        )

    def _made(self, kind: Any, family: Family) -> list[tuple[_Style, Any]]:
        """Return a metric for each family of names that has it."""
        more = {"buckets": family.buckets} if family.buckets else {}
        return [
            (style, kind(name, family.text, (*style.labels(""), *family.labels), registry=self._registry, **more))
            for style in self._styles
            if (name := style.name(family)) is not None
        ]

    def observe(self, key: str, value: float, model: str) -> None:
        """Record a value of one of `families.HISTOGRAMS`."""
        for child in self._of(self._histograms, key, model):
            child.observe(value)

    def count(self, key: str, model: str, amount: int = 1, **labels: str) -> None:
        """Add to one of `families.COUNTERS`."""
        for child in self._of(self._counters, key, model, **labels):
            child.inc(amount)

    def _of(self, metrics: dict[str, list[tuple[_Style, Any]]], key: str, model: str, **labels: str) -> list[Any]:
        """Return the metrics with their labels. They are kept, because looking them up for each token is slow."""
        model = self._bounded(model)
        found = self._children.get((key, model, *labels.values()))
        if found is None:
            found = [metric.labels(**style.labels(model), **labels) for style, metric in metrics[key]]
            self._children[key, model, *labels.values()] = found
        return found

    def _bounded(self, model: str) -> str:
        if model in self._models:
            return model
        if len(self._models) < _MAX_MODELS:
            self._models.add(model)
            return model
        return _OTHER

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    """Reads the engine's own counters at each scrape."""

    def __init__(self, stats: Callable[[], EngineStats], served: Served, styles: list[_Style]) -> None:
        self._stats, self._served, self._styles = stats, served, styles
        self._adapters: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
        self._changed = time.time()

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        for style in self._styles:
            for kind, table in ((GaugeMetricFamily, families.GAUGES), (CounterMetricFamily, families.TOTALS)):
                for field, family in table.items():
                    if name := style.name(family):
                        metric = kind(name, family.text, labels=[*style.labels("")])
                        metric.add_metric([*style.labels(self._served.model).values()], getattr(stats, field))
                        yield metric
            yield from self._vllm_only(stats, style) if style.prefix == "vllm:" else self._ternvl_only(style)

    def _ternvl_only(self, style: _Style) -> Iterator[Metric]:
        text = "What runs here; the value is always 1."
        labels = {**style.labels(self._served.model), **self._served.info}
        yield _info("ternvl_build_info", text, labels, 1)

    def _vllm_only(self, stats: EngineStats, style: _Style) -> Iterator[Metric]:
        labels = {**self._served.cache, **style.fixed}
        yield _info("vllm:cache_config_info", "The KV cache; the value is always 1.", labels, 1)
        adapters = stats.running_adapters, stats.waiting_adapters
        if adapters != self._adapters:
            self._adapters, self._changed = adapters, time.time()
        running, waiting = (",".join(names) for names in self._adapters)
        labels = {
            "max_lora": str(self._served.max_adapters),
            "running_lora_adapters": running,
            "waiting_lora_adapters": waiting,
        }
        text = "The adapters of requests; the value is the time of the latest change."
        yield _info("vllm:lora_requests_info", text, labels, self._changed)


def _info(name: str, text: str, labels: Mapping[str, str], value: float) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[*labels])
    family.add_metric([*labels.values()], value)
    return family
