"""Measures two real servers under a scripted load, and predicts the same by the simulation.

The servers of calibration record their steps; those that are measured are plain. Rounds of both take turns, and each
figure is the median of the rounds. Requests arrive at the same times, in the same order, for the measurement and for
the prediction. On a machine that others use too, the simulated servers have the share of a processor that Linux counted
for the real ones (`pace.py`); the prediction without that is printed beside it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.live.watch import percentile
from benchmarks.scale.rates import Rates, as_json
from benchmarks.scale.request import Request
from benchmarks.scale.routing import Router
from benchmarks.scale.validation.calibrate import fit, steps
from benchmarks.scale.validation.client import Client, Seen
from benchmarks.scale.validation.probe import Paces, Probe
from benchmarks.scale.validation.script import Item, Writer, rendered
from benchmarks.scale.validation.servers import Pair, pair
from benchmarks.scale.validation.twin import Twin

POLICIES = ("random", "affinity")
WARM = 80
"""Requests before the first measurement."""
LATE = 1.3
"""The load of the run that measures the most answers per second, in times of the capacity."""
FIGURES = ("TTFT p50", "TTFT p99", "answers/s")
Figures = dict[str, float]


@dataclass(frozen=True)
class Run:
    """One measurement and its predictions."""

    load: float
    policy: str
    measured: Figures
    predicted: Figures
    undisturbed: Figures
    """The prediction for processors that nobody else uses."""
    hits: tuple[int, int]
    """The tokens that were found in the KV caches: measured and predicted."""
    share: float
    """The mean share of a processor that the engines got."""
    num_requests: int


class Bench:
    """Plain and recording servers, and the simulation of the plain ones."""

    def __init__(self, plain: Pair, recording: Pair, seed: str) -> None:
        self._plain, self._recording = plain, recording
        self._writer = Writer(seed)
        self._twin, self._bare = Twin(plain.settings()), Twin(plain.settings())
        self._num_runs = 0
        self.rates: list[Rates] = []
        self.capacity = 0.0

    def warm(self) -> None:
        """Let all servers work, and the simulations see the same requests; measure the capacity."""
        items = self._writer.some(WARM)
        for servers in (self._plain, self._recording):
            Client(servers.ports, Router("random", 0).choose).run(items, 12)
        requests = self._requests(items)
        for twin in (self._twin, self._bare):
            twin.run(requests, "random", 0, Rates(0.001))
        items = self._writer.some(WARM)
        began = time.monotonic()
        Client(self._recording.ports, Router("random", 0).choose).run(items, 12)
        self.capacity = WARM / (time.monotonic() - began)

    def _requests(self, items: Sequence[Item]) -> list[Request]:
        return rendered(self._recording.servers[0].ask, items)

    def _seed(self) -> int:
        self._num_runs += 1
        return self._num_runs

    def calibrate(self, seconds: float, load: float) -> None:
        """Fit the rates to a run of the recording servers."""
        items = self._writer.poisson(load * self.capacity, seconds)
        client, seen, paces = _measure(self._recording, items, "random", self._seed())
        time.sleep(0.2)  # until the last step is written
        lines = [steps(each) for each in self._recording.records]
        records = [[line for line in each if line[1] >= client.began - 0.05] for each in lines]
        self.rates.append(fit(records, items, seen, client.began, paces))

    def run(self, seconds: float, load: float, policy: str) -> Run:
        """Measure one load, and predict it."""
        items, seed = self._writer.poisson(load * self.capacity, seconds), self._seed()
        requests = self._requests(items)
        _, seen, paces = _measure(self._plain, items, policy, seed)
        predicted = self._twin.run(requests, policy, seed, self.rates[-1], paces)
        bare = self._bare.run(requests, policy, seed, self.rates[-1])
        return Run(
            load,
            policy,
            figures([each.ttft for each in seen], [each.ended for each in seen]),
            figures([each.ttft for each in predicted], [each.ended for each in predicted]),
            figures([each.ttft for each in bare], [each.ended for each in bare]),
            (sum(each.num_cached for each in seen), sum(each.num_cached for each in predicted)),
            statistics.mean(each.engine.mean for each in paces),
            len(items),
        )


def _measure(servers: Pair, items: Sequence[Item], policy: str, seed: int) -> tuple[Client, list[Seen], list[Paces]]:
    client = Client(servers.ports, Router(policy, seed).choose)
    with Probe([each.process.pid for each in servers.servers]) as probe:
        seen = client.run(items)
    wrong = sum(each.status != 200 or not each.first for each in seen)
    if wrong:
        raise RuntimeError(f"{wrong} of {len(seen)} requests failed; the machine may be too busy for this load.")
    return client, seen, probe.paces(client.began)


def figures(ttfts: list[float], ends: list[float]) -> Figures:
    """Return what is compared: seconds to the first token, and answers per second until the last one ended."""
    return {
        "TTFT p50": percentile(ttfts, 0.5),
        "TTFT p99": percentile(ttfts, 0.99),
        "answers/s": len(ends) / max(ends),
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run all rounds; return the figures."""
    runs: list[Run] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ternvl-scale-") as name:
        folder = Path(name)
        with pair(folder, args.threads) as plain, pair(folder, args.threads, recording=True) as recording:
            starts = plain.ready_seconds
            bench = Bench(plain, recording, args.seed)
            bench.warm()
            print(f"capacity: about {bench.capacity:.1f} requests/s; load average {os.getloadavg()[0]:.1f}", flush=True)
            for number in range(args.rounds):
                bench.calibrate(args.seconds * 0.8, statistics.mean(args.loads))
                for load in args.loads:
                    runs += [bench.run(args.seconds, load, policy) for policy in POLICIES]
                runs.append(bench.run(args.seconds / 2, LATE, "random"))
                print(f"round {number + 1}: {[f'{each.share:.2f}' for each in runs[-5:]]}", flush=True)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "threads": args.threads,
        "rounds": args.rounds,
        "seconds": round(time.monotonic() - began),
        "load_average": round(os.getloadavg()[0], 2),
        "capacity": round(bench.capacity, 2),
        "ready_seconds": round(statistics.median(starts), 2),
        "rates": as_json(median_rates(bench.rates)),
        "runs": [asdict(each) for each in runs],
    }


def median_rates(all_rates: Sequence[Rates]) -> Rates:
    """Return the medians of the rounds, without distributions."""
    names = [name for name, value in asdict(all_rates[0]).items() if not isinstance(value, tuple)]
    middle = {name: statistics.median(getattr(each, name) for each in all_rates) for name in names}
    return replace(Rates(0.0), **middle)


def rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each load, policy and figure, with the medians of the rounds and the ratio."""
    cells: dict[tuple[float, str], list[dict[str, Any]]] = {}
    for run in found["runs"]:
        cells.setdefault((run["load"], run["policy"]), []).append(run)
    made = []
    for (load, policy), runs in cells.items():
        for name in ("answers/s",) if load == LATE else FIGURES:
            measured, predicted, undisturbed = (
                statistics.median(run[kind][name] for run in runs) for kind in ("measured", "predicted", "undisturbed")
            )
            made.append({
                "load": load, "policy": policy, "figure": name, "measured": measured, "predicted": predicted,
                "undisturbed": undisturbed, "ratio": predicted / measured,
            })  # fmt: skip
    return made
