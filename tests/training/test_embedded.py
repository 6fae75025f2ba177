"""The embedded model through the real server does what its card says, on the first of the card's own questions."""

from __future__ import annotations

import json

from training.evaluate import CARD, RESULTS, SAMPLE, evaluate, table

ONE_QUESTION = 1 / SAMPLE + 1e-6
"""Greedy answers to the same questions are the same, but for a near tie that another processor rounds otherwise."""


def test_a_sample_agrees_with_the_card() -> None:
    published = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert table(published) in CARD.read_text(encoding="utf-8"), "the card is not that of results.json"
    for task, row in evaluate(each=SAMPLE).items():
        for kind in (key for key in row if key.endswith("sample")):
            assert abs(row[kind] - published[task][kind]) <= ONE_QUESTION, (
                task,
                kind,
                row[kind],
                published[task][kind],
            )
