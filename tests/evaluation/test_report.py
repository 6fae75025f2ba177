"""Scores of items to results: each average equals another computation of its definition."""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path
from statistics import mean

import pytest

from ternvl.evaluation import BENCHMARKS, METRICS, Benchmark
from ternvl.evaluation.items import BenchmarkItem
from ternvl.evaluation.records import Record
from ternvl.evaluation.report import results_of, table, yes_no_rates
from tests.evaluation.made import COUNT, item

Row = tuple[BenchmarkItem, Record]


def rows_of(name: str) -> list[Row]:
    """Answers to yes-or-no questions: two about each of four images in a category."""
    rng = random.Random(name)
    rows = []
    for number in range(COUNT):
        right, answer = rng.choice(("yes", "no")), rng.choice(("Yes", "No", "No.", "perhaps"))
        each = item(
            id=str(number), answers=(right,), category=f"c{number % 5}", group=f"g{number // 10}-{number % 5}",
            figure=f"f{number // 20}",
        )  # fmt: skip
        rows.append((each, Record(each.id, answer, METRICS[BENCHMARKS[name].metric].score(answer, each))))
    return rows


def score_of(name: str, rows: list[Row]) -> float:
    return float(results_of(rows, BENCHMARKS[name], name=name, model="m")["score"])


def by(rows: list[Row], name: str) -> list[list[float]]:
    groups = defaultdict(list)
    for each, record in rows:
        groups[getattr(each, name)].append(record.score)
    return list(groups.values())


def test_the_mean_of_items() -> None:
    rows = rows_of("mmstar".replace("mmstar", "mme"))
    results = results_of(rows, Benchmark(metric="yes_no"), name="custom", model="m")
    assert results["score"] == pytest.approx(100 * mean(record.score for _, record in rows), abs=1e-4)
    assert results["categories"].keys() == {"c0", "c1", "c2", "c3", "c4"}


def test_the_mean_of_categories() -> None:
    rows = rows_of("mme")[:-13]
    expected = mean(100 * mean(scores) for scores in by(rows, "category"))
    found = results_of(rows, Benchmark(metric="yes_no", average="categories"), name="x", model="m")["score"]
    assert found == pytest.approx(expected, abs=1e-4)


def test_mme_is_the_sum_of_the_accuracies_of_questions_and_images() -> None:
    rows, expected = rows_of("mme"), 0.0
    for category in {each.category for each, _ in rows}:
        mine = [row for row in rows if row[0].category == category]
        pairs = by(mine, "group")
        assert {len(pair) for pair in pairs} == {2}
        expected += 100 * mean(record.score for _, record in mine) + 100 * mean(a * b for a, b in pairs)
    assert score_of("mme", rows) == pytest.approx(expected, abs=1e-4)


def test_hallusionbench_is_the_mean_of_three_accuracies() -> None:
    rows = rows_of("hallusionbench")
    answers = mean(record.score for _, record in rows)
    figures = mean(float(all(scores)) for scores in by(rows, "figure"))
    questions = mean(float(all(scores)) for scores in by(rows, "group"))
    expected = 100 * (answers + figures + questions) / 3
    assert score_of("hallusionbench", rows) == pytest.approx(expected, abs=1e-4)


def test_mmbench_counts_questions_that_are_right_in_all_rotations() -> None:
    rng = random.Random("rotations")
    rows = []
    for number in range(COUNT):
        each = item(id=str(number), answers=("A",), options=("x", "y"), group="" if number < 20 else f"q{number // 4}")
        rows.append((each, Record(each.id, "A", float(rng.random() < 0.8))))
    alone = [record.score for _, record in rows[:20]]
    together = [float(all(record.score for _, record in rows[i : i + 4])) for i in range(20, COUNT, 4)]
    assert score_of("mmbench", rows) == pytest.approx(100 * mean(alone + together), abs=1e-4)


def test_groups_are_those_of_images_if_none_are_given() -> None:
    rows = [
        (
            item(id=str(n), images=(Path(f"{n // 2}.png"),), answers=("yes",), category="c"),
            Record(str(n), "Yes", float(n != 3)),
        )
        for n in range(8)
    ]
    assert score_of("mme", rows) == pytest.approx(100 * 7 / 8 + 100 * 3 / 4)
    assert score_of("hallusionbench", rows) == pytest.approx(100 * (7 / 8 + 3 / 4 + 7 / 8) / 3, abs=1e-3)


def test_pope_is_the_mean_of_the_categories_f1() -> None:
    rows, f1 = rows_of("pope"), []
    for category in sorted({each.category for each, _ in rows}):
        mine = [row for row in rows if row[0].category == category]
        said = [not record.answer.startswith("No") for _, record in mine]
        right = [each.answers[0] == "yes" for each, _ in mine]
        table = defaultdict(int)
        for pair in zip(said, right, strict=True):
            table[pair] += 1
        precision = table[True, True] / (table[True, True] + table[True, False])
        recall = table[True, True] / (table[True, True] + table[False, True])
        f1.append(2 * precision * recall / (precision + recall))
        rates = yes_no_rates(mine, "pope")
        assert rates["accuracy"] == pytest.approx(100 * (table[True, True] + table[False, False]) / len(mine), abs=1e-4)
        assert rates["precision"] == pytest.approx(100 * precision, abs=1e-4)
        assert rates["recall"] == pytest.approx(100 * recall, abs=1e-4)
        assert rates["yes"] == pytest.approx(100 * mean(said), abs=1e-4)
    assert score_of("pope", rows) == pytest.approx(100 * mean(f1), abs=1e-3)


def test_ocrbench_has_a_thousand_points() -> None:
    rows = [(item(id=str(i), answers=("x",)), Record(str(i), "x", float(i < 79))) for i in range(100)]
    assert score_of("ocrbench", rows) == 790


def test_rates_of_answers_that_say_nothing() -> None:
    rows = [
        (item(answers=("no",)), Record("1", "maybe", 0.0)),
        (item(answers=("no",)), Record("2", "", 0.0, "too long")),
    ]
    assert yes_no_rates(rows, "yes_no") == {"accuracy": 0, "precision": 0, "recall": 0, "f1": 0, "yes": 0}
    assert yes_no_rates(rows, "pope")["yes"] == 50  # an item that could not be asked said nothing


def test_what_went_wrong_is_counted() -> None:
    rows = [
        (item(answers=("x",)), Record("1", "x", 1.0, None, True)),
        (item(id="2", answers=("x",)), Record("2", "", 0.0, "Too long.")),
    ]
    results = results_of(rows, BENCHMARKS["docvqa"], name="docvqa", model="m", broken=[(7, "It is not JSON.")])
    assert results["score"] == 50
    assert results["published"] == 81.9
    assert results["failed"] == [{"id": "2", "error": "Too long."}]
    assert results["broken_lines"] == [{"line": 7, "error": "It is not JSON."}]
    lines = table(results).splitlines()
    assert lines[0].split() == ["items", "score", "published"]
    assert lines[1].split() == ["docvqa", "2", "50.00", "81.9"]
    assert lines[2] == "1 failed, 1 cut, 1 broken lines"
    assert lines[3].startswith("published: of the test set")


def test_a_table_with_categories() -> None:
    lines = table(results_of(rows_of("pope"), BENCHMARKS["pope"], name="pope", model="m")).splitlines()
    assert [line.split()[0] for line in lines[2:12]] == [
        "c0", "c1", "c2", "c3", "c4", "accuracy", "precision", "recall", "f1", "yes",
    ]  # fmt: skip
