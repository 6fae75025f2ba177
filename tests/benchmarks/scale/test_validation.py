"""What compares the simulation with servers: a real engine is recorded, measured and predicted."""

from __future__ import annotations

import io
import json
import os
import random
import threading
from functools import partial
from typing import Any

import pytest

from benchmarks.live.ask import ask
from benchmarks.scale import __main__ as command
from benchmarks.scale import tables
from benchmarks.scale.clock import Clock
from benchmarks.scale.models import embedded, full_size
from benchmarks.scale.pace import Pace
from benchmarks.scale.rates import FULL_SIZE, Rates, Settings, as_json, from_json
from benchmarks.scale.replica import Replica
from benchmarks.scale.request import Request
from benchmarks.scale.validation import compare, recorder, report
from benchmarks.scale.validation.calibrate import fit, least_squares, pitches, spread
from benchmarks.scale.validation.client import Client
from benchmarks.scale.validation.probe import Paces, Probe
from benchmarks.scale.validation.script import Writer, rendered
from ternvl.engine.loop import Loop
from ternvl.llm import LLM
from tests.server.fakes import serving


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    for name in ("add", "_deliver", "_step"):
        monkeypatch.setattr(Loop, name, getattr(Loop, name))  # gives the originals back at the end
    file = io.StringIO()
    recorder.install(file)
    return file


def one_after_the_other(requests: list[Request], settings: Settings) -> Replica:
    clock, waiting = Clock(), iter(requests)

    def begin(*_: Any) -> None:
        request = next(waiting, None)
        if request is not None:
            request.arrival = clock.now
            replica.send(request)

    replica = Replica(clock, Rates(0.001), settings, begin)
    begin()
    clock.run()
    return replica


def test_a_recorded_server_does_what_is_predicted(record: io.StringIO) -> None:
    options: dict[str, Any] = {"max_model_len": 2048, "max_num_seqs": 4, "speculation": "off"}
    llm = LLM(max_num_batched_tokens=256, kv_cache_memory=200 * 65_536, image_cache_memory=10 * 16_384, **options)
    items = Writer("test").some(24)
    with serving(llm) as url:
        port = int(url.rsplit(":", 1)[1].strip("/"))
        requests = rendered(partial(ask, ("127.0.0.1", port)), items)
        client = Client([port], lambda key, loads: 0)
        seen = client.run(items, at_once=1)
    assert {each.status for each in seen} == {200}
    settings = Settings(max_num_seqs=4, num_blocks=200, image_tiles=10)
    replica = one_after_the_other(requests, settings)
    assert [each.num_cached for each in seen] == [each.num_cached for each in requests]
    assert sum(each.num_cached > 0 for each in seen) > 5
    stats = llm.engine.stats()
    assert (stats.num_image_hits, stats.num_image_lookups) == (replica.images.num_hits, replica.images.num_lookups)
    lines = [json.loads(line) for line in record.getvalue().splitlines()]
    steps = [line for line in lines if line[0] == "step"]
    assert sum(line[3] for line in steps) == sum(each.num_tokens - each.num_cached for each in requests)
    assert sum(line[5] for line in steps) == sum(each.answer for each in requests)
    assert sum(line[4] for line in steps) == 5 * (replica.images.num_lookups - replica.images.num_hits)
    for item, each in zip(items, seen, strict=True):
        object.__setattr__(item, "due", each.due)
    rates = fit([lines], items, seen, client.began, [Paces(Pace(), Pace())])
    assert rates.prompt_token > 0
    assert rates.before > 0
    assert sum(rates.delays) / len(rates.delays) == pytest.approx(rates.before, rel=0.2)


def test_rates_are_found_again() -> None:
    rng, rates = random.Random(1), (0.002, 0.00005, 0.004, 0.0003, 0.001)
    rows = []
    for _ in range(3_000):
        counts = [1.0, rng.choice((0, 0, 40, 256)), rng.choice((0, 0, 1)), rng.randrange(9), rng.choice((0, 0, 1))]
        exact = sum(count * rate for count, rate in zip(counts, rates, strict=True))
        rows.append([*counts, exact * rng.lognormvariate(-0.02, 0.2)])
    assert least_squares(rows) == pytest.approx(rates, rel=0.08)
    without = [[*row[:2], 0.0, *row[3:]] for row in rows]
    assert least_squares(without)[2] == 0


def test_a_step_lasts_until_the_next_one_begins_unless_nothing_is_left() -> None:
    record = [
        ["add", 0.5, False],
        ["step", 1.0, 1.5, 10, 0, 1, 1, 0.0, 0.1],
        ["first", 1.5],
        ["add", 1.6, True],
        ["step", 2.0, 2.5, 0, 1, 2, 0, 0.3, 0.3],
        ["step", 9.0, 9.25, 5, 0, 0, 1, 0.3, 0.3],
    ]
    rows = pitches(record)
    assert rows == [[1.0, 10, 0, 1, 1, pytest.approx(0.7)], [1.0, 0, 1, 2, 0, 0.5]]


def test_a_few_values_stand_for_many() -> None:
    values = [random.Random(2).expovariate(1) for _ in range(1_000)]
    few = spread(values)
    assert len(few) == 50
    assert sum(few) / 50 == pytest.approx(sum(values) / 1_000)
    assert spread([3.0, 1.0]) == (1.0, 3.0)
    assert spread([]) == ()


def test_rates_survive_their_file() -> None:
    rates = Rates(0.001, 0.00002, noise=(0.5, 1.5))
    assert from_json(json.loads(json.dumps(as_json(rates)))) == rates


@pytest.mark.skipif(not os.path.exists("/proc/self/schedstat"), reason="Linux counts this")
def test_a_probe_sees_a_thread_work() -> None:
    end = threading.Event()

    def work() -> None:
        while not end.is_set():
            sum(range(1_000))

    thread = threading.Thread(target=work)
    thread.start()
    with Probe([os.getpid()]) as probe:
        end.wait(0.3)
    end.set()
    thread.join()
    (paces,) = probe.paces(0.0)
    assert 0 < paces.engine.mean <= 1


FOUND: dict[str, Any] = {
    "date": "2026-01-01", "processor": "some", "threads": 1, "rounds": 3, "seconds": 200, "capacity": 20.0,
    "load_average": 1.0, "ready_seconds": 2.5, "rates": as_json(FULL_SIZE),
    "runs": [
        {
            "load": load, "policy": "random", "num_requests": 10, "share": 0.9, "hits": (16, 32),
            **{kind: {"TTFT p50": p50, "TTFT p99": 2 * p50, "answers/s": 5.0}
               for kind, p50 in (("measured", 0.1), ("predicted", 0.1 * error), ("undisturbed", 0.1))},
        }
        for load, error in ((0.4, 1.0), (0.4, 1.1), (0.4, 9.0), (0.7, 1.2), (compare.LATE, 1.0))
    ],
}  # fmt: skip


def test_a_prediction_that_is_off_is_named() -> None:
    rows = compare.rows(FOUND)
    assert [(row["load"], row["figure"], round(row["ratio"], 3)) for row in rows] == [
        (0.4, "TTFT p50", 1.1), (0.4, "TTFT p99", 1.1), (0.4, "answers/s", 1.0),
        (0.7, "TTFT p50", 1.2), (0.7, "TTFT p99", 1.2), (0.7, "answers/s", 1.0), (compare.LATE, "answers/s", 1.0),
    ]  # fmt: skip
    assert report.missed(rows) == ["random at 70%, TTFT p50: 1.20", "random at 70%, TTFT p99: 1.20"]
    page = report.validation(FOUND)
    assert "2 of 7 miss 15 %" in page
    assert "| 70% | random | TTFT p50 | 100 ms | 120 ms | **1.20** | 100 ms |" in page


def test_tables_need_a_validation_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    monkeypatch.setattr(command, "MEASURED", tmp_path / "none.json")
    assert command.main(["tables"]) == 1
    assert "validate --write" in capsys.readouterr().err


def test_tables_name_prices_and_first_failures() -> None:
    model = embedded(FOUND)
    assert (model.ready, model.rates.step) == (2.5, FULL_SIZE.step)
    row = {"users": 1000, "policy": "affinity", "replicas": 3, "flat_hours": 72.0, "hours": 50.0, "prefix": 0.5,
           "image": 0.25, "p50": 0.05, "p99": 1.5, "pace": 40.0}  # fmt: skip
    text = tables.shown([row], "users policy replicas flat hours price prefix image p50 p99 pace", full_size(), 0.1)
    assert text.endswith("| 1,000 | affinity | 3 | 72 | 50 | 10.00 | 50 % | 25 % | 50 ms | 1.50 s | 40 |")
    rows = [
        {
            "case": "texts",
            "load": load,
            "users": 1e5 * load,
            "p99": p99,
            "pace": 30 - 12 * load,
            "kv": 0.1,
            "refused": 0,
        }
        for load, p99 in ((0.3, 1.0), (0.9, 2.5), (1.0, 3.0))
    ]
    assert tables._failure(rows).endswith("| texts | 100,000 | 1.00 s | 0.9 | 0.9 | above 1 | above 1 |")
