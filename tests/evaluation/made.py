"""Items and answers that are made up, with the answers' kinds that a model gives."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from ternvl.evaluation.items import BenchmarkItem

COUNT = 200
WORDS = (
    "red", "blue", "the", "a", "An", "car", "Cars", "two", "TWO", "2", "ten", "none", "yes", "no", "dont",
    "don't", "couldnt", "wouldn'tve", "it's", "1,000", "10.5", "3.", "U.S.A.", "well-known", "stop/go", "(left)",
    "[right]", '"quoted"', "what?",
    "hey!", "a/b", "x=y", "50%", "12:30", "7th", "o'clock", "oclock,", "semi;colon", "under_score", "yall'd've",
)  # fmt: skip


def item(**fields: Any) -> BenchmarkItem:
    return BenchmarkItem(**{"id": "1", "images": (Path("image.png"),), "question": "What?", **fields})


def phrase(rng: random.Random, most: int = 4) -> str:
    return rng.choice([" ", "  ", ", ", "\n"]).join(rng.choices(WORDS, k=rng.randint(1, most)))


def changed(rng: random.Random, text: str) -> str:
    """A text with a few letters exchanged, lost or put in, or as it is."""
    letters = list(text)
    for _ in range(rng.choice((0, 0, 1, 2, 5))):
        place = rng.randrange(len(letters) + 1)
        letters[place : place + rng.randint(0, 2)] = rng.choice(["", "x", "E", " ", "ab"])
    return "".join(letters)
