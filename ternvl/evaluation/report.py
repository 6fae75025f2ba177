"""Scores of items to the results of a benchmark, as a dictionary and as a table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

from ternvl.evaluation.benchmarks import Average, Benchmark
from ternvl.evaluation.items import BenchmarkItem
from ternvl.evaluation.metrics import is_yes, says_yes, says_yes_to_pope
from ternvl.evaluation.records import Record

Scored = Sequence[tuple[BenchmarkItem, Record]]
_SAYS_YES = {"yes_no": says_yes, "pope": says_yes_to_pope}


def results_of(
    scored: Scored, benchmark: Benchmark, *, name: str, model: str, broken: Sequence[tuple[int, str]] = ()
) -> dict[str, Any]:
    """Return the results of a run: the score, beside the published one, its parts and what went wrong."""
    score = round(_AVERAGES[benchmark.average](scored, benchmark), 4)
    results: dict[str, Any] = {
        "benchmark": name,
        "model": model,
        "metric": benchmark.metric,
        "score": score,
        "published": benchmark.published,
        "note": benchmark.note,
        "items": len(scored),
        "failed": [{"id": record.id, "error": record.error} for _, record in scored if record.error is not None],
        "cut": sum(record.is_cut for _, record in scored),
        "broken_lines": [{"line": line, "error": text} for line, text in broken],
        "categories": _categories(scored, benchmark),
    }
    if benchmark.metric in _SAYS_YES:
        results["yes_no"] = yes_no_rates(scored, benchmark.metric)
    return results


def table(results: Mapping[str, Any]) -> str:
    """Return the results as lines for a terminal."""
    published = "" if results["published"] is None else f"{results['published']:>10.1f}"
    lines = [f"{'':<32} {'items':>6} {'score':>10}{'published' if published else '':>10}"]
    lines += [f"{results['benchmark']:<32} {results['items']:>6} {results['score']:>10.2f}{published}".rstrip()]
    categories = results["categories"]
    lines += [f"  {each:<30} {row['items']:>6} {row['score']:>10.2f}" for each, row in categories.items()]
    lines += [f"  {name:<30} {'':>6} {value:>10.2f}" for name, value in results.get("yes_no", {}).items()]
    counts = {"failed": len(results["failed"]), "cut": results["cut"], "broken lines": len(results["broken_lines"])}
    if notes := [f"{count} {what}" for what, count in counts.items() if count]:
        lines.append(", ".join(notes))
    if published and results["note"]:
        lines.append(f"published: {results['note']}")
    return "\n".join(lines)


def yes_no_rates(scored: Scored, metric: str) -> dict[str, float]:
    """Return accuracy, precision, recall, F1 and the share of answers that say yes, in percent."""
    said = [_SAYS_YES[metric](record.answer) if record.error is None else None for _, record in scored]
    right = [is_yes(item) for item, _ in scored]
    hits = sum(says is True and truth for says, truth in zip(said, right, strict=True))
    precision, recall = _share(hits, said.count(True)), _share(hits, right.count(True))
    rates = {
        "accuracy": _mean(record.score for _, record in scored),
        "precision": precision,
        "recall": recall,
        "f1": _share(2 * precision * recall, precision + recall),
        "yes": _share(said.count(True), len(said)),
    }
    return {name: round(100 * rate, 4) for name, rate in rates.items()}


def _categories(scored: Scored, benchmark: Benchmark) -> dict[str, dict[str, float]]:
    """Return items and score of each category, if there is more than one."""
    groups = _grouped(scored, lambda item: item.category)
    average: Average = benchmark.average if benchmark.average in ("f1", "mme", "groups") else "items"
    rows = {
        name: {"items": len(rows), "score": round(_AVERAGES[average](rows, benchmark), 4)}
        for name, rows in groups.items()
    }
    return dict(sorted(rows.items())) if len(rows) > 1 else {}


def _of_items(scored: Scored, benchmark: Benchmark) -> float:
    return 100 * _mean(record.score for _, record in scored)


def _of_categories(scored: Scored, benchmark: Benchmark) -> float:
    return _mean(_of_items(rows, benchmark) for rows in _grouped(scored, lambda item: item.category).values())


def _of_f1(scored: Scored, benchmark: Benchmark) -> float:
    groups = _grouped(scored, lambda item: item.category).values()
    return _mean(yes_no_rates(rows, benchmark.metric)["f1"] for rows in groups)


def _of_mme(scored: Scored, benchmark: Benchmark) -> float:
    """Return the sum, over the categories, of the accuracy of questions and that of images, in percent."""
    groups = _grouped(scored, lambda item: item.category).values()
    return sum(
        _of_items(rows, benchmark) + 100 * _all_right(rows, lambda item: item.group or item.first_image)
        for rows in groups
    )


def _of_hallusion(scored: Scored, benchmark: Benchmark) -> float:
    """Return the mean of the accuracies of answers, of figures (all right) and of questions (all right), in percent."""
    figures = _all_right(scored, lambda item: item.figure or item.first_image)
    questions = _all_right(scored, lambda item: item.group or item.id)
    return (_of_items(scored, benchmark) + 100 * figures + 100 * questions) / 3


def _of_groups(scored: Scored, benchmark: Benchmark) -> float:
    """Return the share of groups in which every answer is right, in percent; an item without a group is one."""
    return 100 * _all_right(scored, lambda item: item.group or item.id)


def _of_points(scored: Scored, benchmark: Benchmark) -> float:
    return 10 * _of_items(scored, benchmark)


_AVERAGES: Mapping[Average, Callable[[Scored, Benchmark], float]] = {
    "items": _of_items,
    "categories": _of_categories,
    "f1": _of_f1,
    "mme": _of_mme,
    "hallusion": _of_hallusion,
    "groups": _of_groups,
    "points": _of_points,
}


def _all_right(scored: Scored, key: Callable[[BenchmarkItem], Hashable]) -> float:
    """Return the share of groups in which every answer is right."""
    return _mean(min(record.score for _, record in rows) for rows in _grouped(scored, key).values())


def _grouped(scored: Scored, key: Callable[[BenchmarkItem], Hashable]) -> dict[Any, Scored]:
    groups: dict[Any, list[tuple[BenchmarkItem, Record]]] = defaultdict(list)
    for item, record in scored:
        groups[key(item)].append((item, record))
    return dict(groups)


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else 0.0


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
