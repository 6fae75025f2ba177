"""The embedded model reaches the scores of its card through the real server, on the first of the card's questions."""

from __future__ import annotations

import json

from training.evaluate import CARD, RESULTS, SAMPLE, evaluate, table

ONE_QUESTION = 1 / SAMPLE + 1e-6
"""Tolerance for answers that differ because another processor rounds a near tie differently."""


def test_a_sample_agrees_with_the_card() -> None:
    published = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert table(published) in CARD.read_text(encoding="utf-8"), "the card does not match results.json"
    for task, row in evaluate(each=SAMPLE).items():
        for kind in (key for key in row if key.endswith("sample")):
            assert abs(row[kind] - published[task][kind]) <= ONE_QUESTION, (
                task,
                kind,
                row[kind],
                published[task][kind],
            )
