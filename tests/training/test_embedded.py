"""The embedded model through the real server does what its card says, on a small sample of the card's questions."""

from __future__ import annotations

import json
import math

from training.evaluate import CARD, RESULTS, evaluate, table

EACH = 10


def test_a_sample_agrees_with_the_card() -> None:
    published = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert table(published) in CARD.read_text(encoding="utf-8"), "the card is not that of results.json"
    for task, row in evaluate(each=EACH).items():
        for kind in row.keys() - {"count"}:
            expected = published[task][kind]
            spread = math.sqrt(max(expected * (1 - expected), 0.01) / EACH)
            assert row[kind] >= expected - 3 * spread, (task, kind, row[kind], expected)
