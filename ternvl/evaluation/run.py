"""Runs an evaluation: asks every item that has no record yet, several at a time, and records its score."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ternvl.errors import ConfigError, RequestError, TaskError
from ternvl.evaluation.ask import to_request
from ternvl.evaluation.benchmarks import Benchmark
from ternvl.evaluation.items import BenchmarkItem, ItemFile, read_items
from ternvl.evaluation.metrics import METRICS, Metric
from ternvl.evaluation.records import Record, Records
from ternvl.evaluation.report import results_of
from ternvl.limits import ImageLimits
from ternvl.tasks.requests import Backend, Reply, together
from ternvl.types import Progress

_ABOUT_THE_ITEM = (400, 413, 415, 422)
"""Statuses with which a server refuses one request. Others would meet all requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One run."""

    data: Path
    """A folder with `items.jsonl`, or such a file."""
    output: Path
    """The folder of the answers and results. A run that it holds is continued."""
    benchmark: Benchmark
    name: str = "custom"
    """The benchmark's name, for the results."""
    model: str = "default"
    """The model's name, for the results. A run cannot be continued with another model."""
    concurrency: int = 8
    """The number of items that are asked at the same time."""
    limit: int | None = None
    """The number of items that are asked, from the first on; None for all."""
    limits: ImageLimits = field(default_factory=ImageLimits)
    """What an image may cost."""

    def __post_init__(self) -> None:
        for name in ("concurrency", "limit"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ConfigError(f"{name} is {value!r}, but must be an integer of at least 1.")
        for metric in (self.benchmark.metric, self.benchmark.open_metric):
            if metric is not None and metric not in METRICS:
                raise ConfigError(f"metric is {metric!r}, but must be one of {', '.join(METRICS)}.")
        for prompt in (self.benchmark.prompt, self.benchmark.open_prompt or ""):
            _check_template(prompt)

    def items(self) -> ItemFile:
        """Read the items. Raises ConfigError if there are none."""
        return read_items(self.data, self.limits, lambda item: self._metric(item).check(item))

    def run(self, backend: Backend, items: ItemFile, progress: Progress = lambda done, total: None) -> dict[str, Any]:
        """Ask the items that have no answer yet; return the results, which are also written to the output.

        `progress` is called after each item. An item that cannot be asked scores 0 and its record says why. Raises
        TaskError if the server cannot be asked, EngineError if the engine fails, and ConfigError if the output holds
        another run; the answers so far are kept, and another call continues.
        """
        return asyncio.run(self.arun(backend, items, progress))

    async def arun(
        self, backend: Backend, items: ItemFile, progress: Progress = lambda done, total: None
    ) -> dict[str, Any]:
        """`run` for an event loop."""
        with Records(self.output, self._settings(items)) as records:
            asked = items.items[: self.limit]
            await self._ask_all(backend, [each for each in asked if each.id not in records.done], records, progress)
            found = [(item, records.done[item.id]) for item in asked]
            results = results_of(found, self.benchmark, name=self.name, model=self.model, broken=items.broken)
            records.write_results(results)
            return results

    def _settings(self, items: ItemFile) -> dict[str, Any]:
        settings = asdict(self.benchmark)
        for name in ("published", "note"):
            del settings[name]
        return {"benchmark": self.name, "model": self.model, "items": items.digest, **settings}

    def _metric(self, item: BenchmarkItem) -> Metric:
        return METRICS[self.benchmark.metric_of(bool(item.options))]

    async def _ask_all(
        self, backend: Backend, items: list[BenchmarkItem], records: Records, progress: Progress
    ) -> None:
        waiting = iter(items)
        done, total = len(records.done), len(records.done) + len(items)

        async def work(waiting: Iterable[BenchmarkItem]) -> None:
            nonlocal done
            for item in waiting:
                records.add(await self._ask(backend, item))
                done += 1
                progress(done, total)

        progress(done, total)
        try:
            await together(work(waiting) for _ in range(min(self.concurrency, len(items))))
        finally:
            await backend.aclose()

    async def _ask(self, backend: Backend, item: BenchmarkItem) -> Record:
        try:
            request = await asyncio.to_thread(to_request, item, self.benchmark, self.limits)
            (reply,) = await backend.aanswer([request])
        except RequestError as error:
            return Record(item.id, "", 0.0, str(error))
        except TaskError as error:
            if error.status in _ABOUT_THE_ITEM:
                return Record(item.id, "", 0.0, str(error))
            raise
        return self._scored(item, reply)

    def _scored(self, item: BenchmarkItem, reply: Reply) -> Record:
        return Record(item.id, reply.text, self._metric(item).score(reply.text, item), None, reply.is_cut)


def _check_template(prompt: str) -> None:
    try:
        prompt.format(question="", options="")
    except (KeyError, IndexError, ValueError, AttributeError):
        rule = "may hold {question} and {options}, and other braces only twice"
        raise ConfigError(f"prompt is {prompt!r}, but {rule}.") from None
