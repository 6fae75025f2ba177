"""The package's adapters reach the scores of their documentation on the first of its questions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ternvl.checkpoint.source import EMBEDDED
from ternvl.finetune.evaluate import evaluate
from ternvl.finetune.inspect import inspect
from training.adapters import HOME, RECIPES, TEST_SEED, TRAIN_SEED, phrase, write_data
from training.scenes import Item

SAMPLE = 20


@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize("name", RECIPES)
def test_the_adapter_answers_correctly_and_the_base_does_not(
    name: str, quantization: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_data(name, tmp_path, num_train=1, num_test=SAMPLE)
    base, adapter = evaluate(
        None, tmp_path / "test.jsonl", tmp_path / "images", [HOME / name], quantization=quantization
    )
    assert base.num_questions == adapter.num_questions == SAMPLE
    assert base.num_right <= SAMPLE // 10
    assert adapter.num_right >= SAMPLE * 8 // 10, adapter.wrong


@pytest.mark.parametrize("name", RECIPES)
def test_the_adapter_is_small_and_follows_the_recipe(name: str) -> None:
    found = inspect(HOME / name, str(EMBEDDED))
    options = RECIPES[name].options
    assert found["num_bytes"] < 400_000
    assert found["rank"] == int(options[options.index("--rank") + 1])
    assert found["base"] == "ternvl-nano"
    assert sum(row["count"] for row in found["modules"]) == 4 * 7 + 1


def test_test_scenes_have_another_seed(tmp_path: Path) -> None:
    assert TRAIN_SEED != TEST_SEED
    write_data("inventory", tmp_path, num_train=6, num_test=6)
    rows = [(tmp_path / f"{part}.jsonl").read_text().splitlines() for part in ("train", "test")]
    pictures = [
        {(tmp_path / "images" / f"{part}-{i:05}.png").read_bytes() for i in range(6)} for part in ("train", "test")
    ]
    assert not pictures[0] & pictures[1]
    answer = json.loads(json.loads(rows[1][2])["messages"][1]["content"])
    assert answer["count"] == len(answer["objects"]) == 3


@pytest.mark.parametrize(
    ("shape", "color", "words"),
    [
        ("star", "green", "une étoile verte"),
        ("heart", "purple", "un cœur violet"),
        ("cross", "brown", "une croix marron"),
    ],
)
def test_french_agrees_in_gender(shape: str, color: str, words: str) -> None:
    assert phrase(Item(shape, color, (0.0, 0.0, 0.5, 0.5))) == words
