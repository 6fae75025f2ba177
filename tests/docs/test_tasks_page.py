"""The page of tasks shows what its examples print, and that of the evaluation what benchmarks and metrics there are."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ternvl.evaluation import BENCHMARKS, METRICS
from ternvl.evaluation.items import read_items
from ternvl.limits import ImageLimits
from ternvl.tasks import Tasks
from tests.scripts.module import script as load_script

ROOT = Path(__file__).resolve().parents[2]
TASKS, EVALUATION = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("tasks.md", "evaluation.md"))


@pytest.fixture(scope="module")
def script() -> Any:
    return load_script("examples")


def test_the_page_of_tasks_shows_what_its_examples_print(script: Any) -> None:
    assert TASKS.count("```text\n") >= 10
    assert script.with_outputs(TASKS) == TASKS


def test_every_task_has_an_example_and_a_row() -> None:
    examples = "".join(re.findall(r"```python\n(.*?)```", TASKS, re.DOTALL))
    names = [name for name, value in vars(Tasks).items() if isinstance(value, Callable) and not name.startswith("_")]  # type: ignore[arg-type]
    for name in set(names) - {"close"}:
        assert f"tasks.{name}(" in examples or f').{name}("' in examples, name
        assert f"`{name}(" in TASKS, name


def test_the_tables_of_the_evaluation(script: Any) -> None:
    assert script.with_benchmarks(EVALUATION) == EVALUATION
    assert all(f"| `{name}` |" in EVALUATION for name in (*BENCHMARKS, *METRICS))
    assert f"{len(BENCHMARKS)} public benchmarks" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.fixture
def convert() -> dict[str, Any]:
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", EVALUATION, re.DOTALL):
        exec(code, names)
    return names


def jpeg(color: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20), color).save(buffer, "JPEG")
    return buffer.getvalue()


def test_lines_of_internvl_become_items(convert: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg("red"))
    rows = [
        {"image": "a.jpg", "question": "What?", "question_id": 7, "answer": ["x", "y"]},
        {"image": "a.jpg", "text": "Is it?\nAnswer the question using a single word or phrase.", "answer": "yes"},
        {"image": "a.jpg", "sent": "the red one", "bbox": [1, 2, 30, 20], "width": 30, "height": 20},
    ]
    (tmp_path / "val.jsonl").write_text("\n".join(map(json.dumps, rows)))
    convert["from_internvl"](tmp_path / "val.jsonl", tmp_path, "human")
    first, second, third = read_items(tmp_path, ImageLimits(), lambda item: None).items
    assert (first.question, first.answers, first.category) == ("What?", ("x", "y"), "human")
    assert (second.question, second.answers) == ("Is it?", ("yes",))
    assert (third.question, third.box, third.size) == ("the red one", (1, 2, 30, 20), (30, 20))


def test_tables_of_vlmevalkit_become_items(convert: dict[str, Any], tmp_path: Path) -> None:
    image, other = (base64.b64encode(jpeg(color)).decode() for color in ("red", "blue"))
    index = "VD_figure_0_1_2_3"
    rows = [
        ("index", "image", "question", "hint", "A", "B", "answer", "category", "l2-category"),
        ("5", image, 'What\n"is" it?', "Look.", "one", "two", "B", "c", ""),
        ("6", "5", "And this?", "", "one", "two", "A", "c", ""),
        (index, f"['{image}', '{other}']", "Is it?", "", "", "", "['Yes', 'yes']", "VD", "figure"),
    ]
    cells = ["\t".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
    (tmp_path / "table.tsv").write_text("\n".join(cells))
    with pytest.raises(ValueError, match="invalid literal"):  # this index is not a number
        convert["from_tsv"](tmp_path / "table.tsv", tmp_path, is_circular=True)
    convert["from_tsv"](tmp_path / "table.tsv", tmp_path)
    first, second, third = read_items(tmp_path, ImageLimits(), lambda item: None).items
    assert (first.question, first.hint, first.options, first.answers) == (
        'What\n"is" it?',
        "Look.",
        ("one", "two"),
        ("B",),
    )
    assert first.images == second.images == (tmp_path / "5-0.jpg",)
    assert first.images[0].read_bytes() == jpeg("red")
    assert [path.name for path in third.images] == [f"{index}-0.jpg", f"{index}-1.jpg"]
    assert (third.answers, third.figure, third.group) == (("Yes", "yes"), "figure 1 2", "figure 1 3")


def test_the_evaluation_in_python(convert: dict[str, Any], tmp_path: Path) -> None:
    Image.open(ROOT / "docs/example.png").save(tmp_path / "a.png")
    rows = [{"image": "a.png", "question": "What color is the circle?", "answer": ["red"] * 9 + ["crimson"]}]
    convert["write"](tmp_path, rows)
    score = convert["evaluate"](tmp_path, tmp_path / "out")
    assert 0 <= score <= 100
    assert json.loads((tmp_path / "out" / "results.json").read_text())["published"] == 74.1


def test_the_example_of_the_data(tmp_path: Path) -> None:
    lines = re.findall(r"```json\n(.*?)```", EVALUATION, re.DOTALL)[0]
    (tmp_path / "images").mkdir()
    for number in (1, 2, 3):
        Image.new("RGB", (200, 100)).save(tmp_path / f"images/{number}.png")
    (tmp_path / "items.jsonl").write_text(lines)
    found = read_items(tmp_path, ImageLimits(), lambda item: None)
    assert len(found.items) == 3
    assert found.broken == ()
