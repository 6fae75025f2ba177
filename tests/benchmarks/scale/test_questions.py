"""Each question is asked of a small fleet, and its table and plot are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.scale import questions, tables
from benchmarks.scale.models import full_size

SMALL = replace(full_size(), parts=((1_000, 1.0), (10_000, 0.5)))
ASKED: dict[str, Callable[[], tables.Rows]] = {
    "slices": lambda: questions.slices(SMALL, 1, 1e5),
    "affinity": lambda: questions.affinity(SMALL, 2_000, 2),
    "adapters": lambda: questions.adapters(SMALL, 2_000, 2),
    "warm": lambda: questions.warm_pools(SMALL, 2_000, 1),
    "zero": lambda: questions.to_zero(SMALL, 300),
    "regions": lambda: questions.regions(SMALL, 900, 1),
}


@pytest.mark.parametrize("name", ASKED)
def test_a_question_gets_a_table(name: str) -> None:
    rows = ASKED[name]()
    text = tables.shown(rows, tables.FIELDS[name], SMALL, 0.1)
    assert len(text.splitlines()) == 2 + len(rows) > 4
    assert not any(row["refused"] for row in rows if name != "adapters")


def test_a_fleet_is_the_smallest_that_is_enough() -> None:
    slow = replace(SMALL, bar=4.0)
    number, found = questions.least_fleet(slow, slow.workload(30_000), "least loaded")
    assert questions.is_enough(slow, found)
    assert number > 1
    assert not questions.is_enough(slow, questions.fixed(slow, slow.workload(30_000), number - 1, "least loaded"))
    with pytest.raises(ValueError, match=r"replicas miss 0\.01 s"):
        questions.least_fleet(replace(SMALL, bar=0.01), SMALL.workload(500), "least loaded")
    text = tables._sizes(questions.sizes(SMALL), SMALL, 0.05)
    assert len(text.splitlines()) == 2 + 2 + 4
    assert "0.5 of 10,000" in text


def test_what_fails_first_is_found_and_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(questions, "LOADS", (0.3, 1.0))
    found = {"failure": questions.first_failure(SMALL, 1), "adapters": ASKED["adapters"]()}
    text = tables._failure(found["failure"])
    assert len(text.splitlines()) == 2 + 4
    assert "| 1 |" in text
    tables.plot(found, tmp_path / "x.svg")
    assert len(ElementTree.parse(tmp_path / "x.svg").findall(".//{*}polyline")) == 4 + 4 + 1 + 2
