"""Folders of items: what a line may hold, and how broken lines are reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ternvl.errors import ConfigError
from ternvl.evaluation import BENCHMARKS, METRICS, Benchmark
from ternvl.evaluation.ask import question_of, to_request
from ternvl.evaluation.items import BenchmarkItem, ItemFile, read_items
from ternvl.limits import ImageLimits
from ternvl.tasks.pictures import Picture

LIMITS = ImageLimits()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 20), "red").save(tmp_path / "images" / "a.png")
    Image.new("RGB", (20, 10), "blue").save(tmp_path / "b.png")
    (tmp_path / "text.png").write_text("no image")
    return tmp_path


def written(folder: Path, *rows: Any) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "items.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def read(folder: Path, *rows: Any) -> ItemFile:
    return read_items(written(folder, *rows), LIMITS, METRICS["exact"].check)


def test_every_field(folder: Path) -> None:
    row = {
        "id": 7, "image": ["images/a.png", "b.png"], "question": "What is it?", "answer": ["a", 2, 3.5],
        "box": [0, 0, 40, 10.5], "options": {"A": "one", "B": "two"},
        "hint": "Look.", "category": "c", "group": "g", "figure": "f", "other": None,
    }  # fmt: skip
    (found,) = read(folder, row).items
    assert found == BenchmarkItem(
        id="7", images=(folder / "images/a.png", folder / "b.png"), question="What is it?", answers=("a", "2", "3.5"),
        options=("one", "two"), box=(0, 0, 40, 10.5), size=(40, 20), hint="Look.", category="c", group="g", figure="f",
    )  # fmt: skip
    assert found.labelled_options == {"A": "one", "B": "two"}


def test_what_may_be_left_out(folder: Path) -> None:
    first, second = read(
        folder, {"question": "1 + 1?", "answer": 2}, "", {"question": "?", "answer": "x", "image": "b.png"}
    ).items
    assert (first.id, first.images, first.answers, first.first_image) == ("1", (), ("2",), "")
    assert (second.id, second.group, second.figure, second.first_image) == ("3", "", "", str(folder / "b.png"))


def test_a_file_of_another_name(folder: Path) -> None:
    written(folder, {"question": "?", "answer": "x", "image": "b.png"})
    path = (folder / "items.jsonl").rename(folder / "other.jsonl")
    assert len(read_items(path, LIMITS, METRICS["exact"].check).items) == 1
    with pytest.raises(ConfigError, match="cannot be read"):
        read_items(folder, LIMITS, METRICS["exact"].check)


GOOD = {"question": "?", "answer": "x"}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "not an object"),
        ("\x00", "not JSON"),
        ({"answer": "x"}, "question"),
        ({"question": " ", "answer": "x"}, "question"),
        ({"question": 3, "answer": "x"}, "question"),
        ({"question": "?"}, "answer"),
        ({"question": "?", "answer": ""}, "answer"),
        ({"question": "?", "answer": {}}, "answer"),
        ({"question": "?", "answer": [None]}, "answer"),
        ({"question": "?", "answer": True}, "answer"),
        ({**GOOD, "id": 1.5}, "id"),
        ({**GOOD, "id": ""}, "id"),
        ({**GOOD, "id": "first"}, "earlier line"),
        ({**GOOD, "image": "none.png"}, "does not exist"),
        ({**GOOD, "image": "../x.png"}, "does not exist|below"),
        ({**GOOD, "image": "/etc/passwd"}, "below"),
        ({**GOOD, "image": "images"}, "not a file"),
        ({**GOOD, "image": "a\0b"}, "does not exist"),
        ({**GOOD, "image": 3}, "image"),
        ({**GOOD, "image": [3]}, "image"),
        ({**GOOD, "image": "text.png", "box": [0, 0, 1, 1]}, "supported format"),
        ({**GOOD, "image": "b.png", "box": [0, 0, 1]}, "box"),
        ({**GOOD, "image": "b.png", "box": [0, 0, 1, "1"]}, "box"),
        ({**GOOD, "image": "b.png", "box": [0, 0, 21, 5]}, "20 x 10"),
        ({**GOOD, "image": "b.png", "box": [5, 5, 4, 8]}, "20 x 10"),
        ({**GOOD, "options": "A"}, "options"),
        ({**GOOD, "options": ["a", 1]}, "options"),
        ({**GOOD, "options": {"B": "x"}}, "options"),
        ({**GOOD, "options": ["x"] * 27}, "options"),
        ({**GOOD, "hint": 3}, "hint"),
        ({**GOOD, "category": []}, "category"),
    ],
)
def test_a_broken_line_is_named_and_the_others_are_read(folder: Path, row: Any, words: str) -> None:
    found = read(folder, {**GOOD, "id": "first"}, "", row, {**GOOD, "id": "last"})
    assert [item.id for item in found.items] == ["first", "last"]
    assert [line for line, _ in found.broken] == [3]
    assert any(word in found.broken[0][1] for word in words.split("|")), found.broken[0][1]


def test_no_item(folder: Path) -> None:
    with pytest.raises(ConfigError, match="line 1: It is not JSON"):
        read(folder, "{")
    with pytest.raises(ConfigError, match="no item"):
        read(folder, "")


# --- what a benchmark asks --------------------------------------------------------------------------------------------


def asked(name: str | Benchmark, folder: Path, images: int = 1, **fields: Any) -> tuple[list[str | Picture], Any]:
    benchmark = BENCHMARKS[name] if isinstance(name, str) else name
    paths = tuple(folder / "b.png" for _ in range(images))
    item = BenchmarkItem(**{"id": "1", "images": paths, "question": "What?", **fields})
    request = to_request(item, benchmark, LIMITS)
    return list(request.parts), request


SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


@pytest.mark.parametrize(
    ("name", "fields", "text", "tiles", "tokens"),
    [
        ("textvqa", {}, f"What? {SHORT}", 6, 10),
        ("docvqa", {}, f"What? {SHORT}", 18, 100),
        ("infovqa", {}, f"What? {SHORT}", 24, 100),
        ("chartqa", {}, f"What? {SHORT}", 12, 100),
        (
            "vizwiz",
            {},
            f"What? When the provided information is insufficient, respond with 'Unanswerable'. {SHORT}",
            6,
            10,
        ),
        ("ai2d", {}, "What?", 6, 10),
        ("ocrbench", {}, f"What?\n{SHORT}", 24, 4096),
        ("mmbench", {"options": ("x", "y"), "hint": "Look."}, f"Look.\nWhat?\nA. x\nB. y\n{LETTER}", 6, 100),
        ("mmbench-cn", {"options": ("x", "y")}, "What?\nA. x\nB. y\n请直接回答选项字母。", 6, 100),
        ("mmmu", {"options": ("x", "y")}, f"What?\nA. x\nB. y\n{LETTER}", 12, 100),
        ("mmmu", {}, f"What?\n{SHORT}", 12, 100),
        ("hallusionbench", {}, f"What? Please answer yes or no. {SHORT}", 6, 4096),
        (
            "refcoco",
            {},
            "Please provide the bounding box coordinate of the region this sentence describes: <ref>What?</ref>",
            6,
            100,
        ),
        ("screenspot", {}, "Please complete the following tasks by clicking using `pyautogui.click`:\nWhat?", 12, 100),
        (
            "vsibench",
            {"options": ("x", "y")},
            f"These are frames of a video.\nWhat?\nOptions:\nA. x\nB. y\n{LETTER}",
            1,
            100,
        ),
        (
            "vsibench",
            {},
            "These are frames of a video.\nWhat?\nAnswer briefly and directly in one float number.",
            1,
            100,
        ),
    ],
)
def test_the_official_question(
    folder: Path, name: str, fields: dict[str, Any], text: str, tiles: int, tokens: int
) -> None:
    parts, request = asked(name, folder, **fields)
    assert parts[1:] == [text]
    assert isinstance(parts[0], Picture)
    assert (request.max_tiles, request.max_tokens) == (tiles, tokens)


def test_several_images_are_labelled_and_share_the_tiles(folder: Path) -> None:
    parts, request = asked("mmiu", folder, images=5, options=("x", "y"))
    assert [part for part in parts[:-1] if isinstance(part, str)] == [
        text for number in range(1, 6) for text in (f"Image-{number}: ", "\n")
    ]
    assert request.max_tiles == 2
    assert asked("mpdocvqa", folder, images=20)[1].max_tiles == 3
    assert asked("mmiu", folder, images=20)[1].max_tiles == 1
    frames, request = asked("mvbench", folder, images=16, options=("x", "y"))
    assert [frames[0], frames[45]] == ["Frame1: ", "Frame16: "]
    assert str(frames[-1]).endswith("Question: What?\nOptions:\n(A) x\n(B) y\nOnly give the best option.")
    assert request.max_tiles == 1


def test_the_first_image_of_mmmu_is_doubled(folder: Path) -> None:
    parts, _ = asked("mmmu", folder, images=2)
    sizes = [part.size for part in parts if isinstance(part, Picture)]
    assert sizes == [(40, 20), (20, 10)]


def test_braces_in_questions_stay(folder: Path) -> None:
    item = BenchmarkItem(id="1", images=(), question="What is {0} in {question}?")
    assert question_of(item, BENCHMARKS["ai2d"]) == "What is {0} in {question}?"


def test_every_benchmark_names_metrics_that_exist() -> None:
    for benchmark in BENCHMARKS.values():
        assert {benchmark.metric, benchmark.open_metric or benchmark.metric} <= set(METRICS)
        assert "{question}" in benchmark.prompt
        assert 1 <= benchmark.max_tiles <= 40


def test_the_published_scores() -> None:
    """InternVL3-1B's, as its report (arXiv 2504.10479) has them."""
    assert {name: each.published for name, each in BENCHMARKS.items() if each.published is not None} == {
        "textvqa": 74.1, "docvqa": 81.9, "infovqa": 53.7, "chartqa": 75.3, "ai2d": 69.4, "ocrbench": 790,
        "mmbench": 72.6,
        "mmbench-v11": 69.9, "mmstar": 51.5, "realworldqa": 58.2, "mmmu": 43.4, "mathvista": 45.8, "pope": 90.7,
        "mme": 1934.4, "hallusionbench": 41.4, "refcoco": 81.6, "mvbench": 63.1, "video-mme": 51.0,
    }  # fmt: skip
