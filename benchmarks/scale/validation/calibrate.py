"""Fits what steps and requests take to what a recording server wrote down."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.scale.rates import Rates
from benchmarks.scale.validation.client import Seen
from benchmarks.scale.validation.probe import Paces
from benchmarks.scale.validation.script import Item

Lines = Sequence[Sequence[Any]]


def steps(record: Path) -> list[list[Any]]:
    """Return the lines of a record that are whole."""
    return [
        json.loads(line) for line in record.read_text(encoding="utf-8").splitlines(keepends=True) if line[-1] == "\n"
    ]


POINTS = 50
"""The values that stand for a distribution."""


def fit(
    records: Sequence[Lines], items: Sequence[Item], seen: Sequence[Seen], began: float, paces: Sequence[Paces]
) -> Rates:
    """Return the rates of a run of `items`, which began at a time of the monotonic clock, at the servers' paces."""
    rows = [row for record in records for row in pitches(record)]
    step, prompt_token, tile, answer_token, request = least_squares(rows)
    rates = Rates(step, prompt_token, tile, answer_token, request)
    expected = [rates.of_step(int(row[1]), int(row[2]), int(row[3])) + row[4] * rates.request for row in rows]
    noise = [(row[5], each) for row, each in zip(rows, expected, strict=True) if row[1] and each]
    scale = sum(each for _, each in noise) / sum(taken for taken, _ in noise)
    text, image = (delays(records, items, seen, began, paces, kind) for kind in (False, True))
    after = [
        max(0.0, paces[number].http.work(line[1] - began, first))
        for number, record in enumerate(records)
        for line, first in zip(
            (line for line in record if line[0] == "first"),
            sorted(each.first for each in seen if each.server == number),
            strict=True,
        )
    ]
    return replace(
        rates,
        before=mean(text),
        image=max(0.0, mean(image) - mean(text)),
        after=mean(after),
        noise=spread([scale * taken / each for taken, each in noise]),
        delays=spread(text),
    )


def delays(
    records: Sequence[Lines],
    items: Sequence[Item],
    seen: Sequence[Seen],
    began: float,
    paces: Sequence[Paces],
    with_image: bool,
) -> list[float]:
    """Return the work from when requests were due to when they came to an engine; they are matched in order."""
    found = []
    for number, record in enumerate(records):
        adds = [line[1] - began for line in record if line[0] == "add" and line[2] is with_image]
        pairs = zip(items, seen, strict=True)
        dues = [item.due for item, each in pairs if each.server == number and has_image(item) is with_image]
        found += [max(0.0, paces[number].http.work(due, add)) for due, add in zip(dues, adds, strict=True)]
    return found


def spread(values: Sequence[float]) -> tuple[float, ...]:
    """Return values that are as likely as the given ones, and have their mean."""
    if not values:
        return ()
    ordered = sorted(values)
    parts = [ordered[len(ordered) * each // POINTS : len(ordered) * (each + 1) // POINTS] for each in range(POINTS)]
    return tuple(mean(part) for part in parts if part)


def has_image(item: Item) -> bool:
    """Return whether a request has an image."""
    return item.key.startswith("image")


def mean(values: Sequence[float]) -> float:
    """Return the mean; 0 without values."""
    return sum(values) / len(values) if values else 0.0


def pitches(record: Lines) -> list[list[float]]:
    """Return for each step 1, its tokens of prompts, tiles, tokens of answers, the requests that came, and its seconds.

    The time goes to the beginning of the next step if the engine has further work, else to its own end. What the
    engine's thread waited for a processor does not count.
    """
    lines = [line for line in record if line[0] != "first"]
    rows: list[list[float]] = []
    num_added, before = 0, None
    for line in lines:
        if line[0] == "add":
            num_added += 1
            continue
        if before is not None:
            end, waited = (line[1], line[7]) if before[6] else (before[2], before[8])
            seconds = max(1e-5, end - before[1] - (waited - before[7]))
            rows.append([1.0, *before[3:6], num_added if before[6] else 0, seconds])
        before, num_added = line, 0  # requests that come while there is no work delay no step
    return rows


def least_squares(rows: Sequence[Sequence[float]]) -> list[float]:
    """Return the rates, none below 0, with the least squares of errors over the square root of the prediction.

    With these weights the sum of the predictions is that of the times, which queues depend on.
    """
    table: NDArray[np.float64] = np.array(rows, float)
    counts, times = table[:, :-1], table[:, -1]
    rates, used = np.zeros(counts.shape[1]), np.array(counts.any(axis=0))
    weights = np.full(len(times), 1.0)
    for _ in range(30):
        rates[:] = 0
        rates[used] = np.linalg.lstsq(counts[:, used] * weights[:, None], times * weights, rcond=None)[0]
        if rates.min() < 0:
            used[int(rates.argmin())] = False
            continue
        weights = 1 / np.sqrt(np.maximum(counts @ rates, 1e-5))
    return [float(each) for each in np.maximum(rates, 0)]
