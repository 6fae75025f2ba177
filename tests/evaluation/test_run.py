"""Runs: concurrency, items and servers that fail, and runs that are killed and go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ternvl.errors import ConfigError, ImageError, TaskError
from ternvl.evaluation import Benchmark, Evaluation
from ternvl.evaluation.records import ANSWERS, RESULTS, Record, Records
from ternvl.llm import LLM
from ternvl.tasks.client import backend_of
from tests.evaluation.echo import EchoBackend
from tests.server.fakes import serving
from training.evaluate import questions

EXACT = Benchmark(metric="exact")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    rows = [{"id": f"i{n}", "image": "a.png", "question": f"say {n}", "answer": str(n % 7)} for n in range(20)]
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def evaluation(data: Path, **settings: Any) -> Evaluation:
    return Evaluation(**{"data": data, "output": data.parent / "out", "benchmark": EXACT, **settings})


def run(data: Path, backend: EchoBackend, **settings: Any) -> dict[str, Any]:
    each = evaluation(data, **settings)
    return each.run(backend, each.items())


def recorded(data: Path) -> list[dict[str, Any]]:
    lines = (data.parent / "out" / ANSWERS).read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_run(data: Path) -> None:
    backend, seen = EchoBackend(0.002), []
    each = evaluation(data, concurrency=5)
    results = each.run(backend, each.items(), lambda done, total: seen.append((done, total)))
    assert results["score"] == 100 * 7 / 20
    assert (backend.most, backend.is_closed) == (5, True)
    assert seen == [(done, 20) for done in range(21)]
    assert sorted(row["id"] for row in recorded(data)) == sorted(f"i{n}" for n in range(20))
    assert json.loads((data.parent / "out" / RESULTS).read_text()) == results


def test_a_finished_run_asks_nothing(data: Path) -> None:
    first, backend = run(data, EchoBackend()), EchoBackend()
    assert run(data, backend) == first
    assert backend.asked == []


def test_the_first_items_and_then_the_others(data: Path) -> None:
    assert run(data, EchoBackend(), limit=4)["items"] == 4
    backend = EchoBackend()
    assert run(data, backend)["items"] == 20
    assert len(backend.asked) == 16


def test_items_that_cannot_be_asked_score_nothing(data: Path) -> None:
    errors = {
        "say 0": TaskError("status 400: too long", status=400),
        "say 1": ImageError("damaged"),
        "say 2": TaskError("status 413", status=413),
    }
    results = run(data, EchoBackend(errors=errors))
    assert results["score"] == 100 * 4 / 20
    assert sorted(each["id"] for each in results["failed"]) == ["i0", "i1", "i2"]
    assert sum(row["error"] is not None for row in recorded(data)) == 3


def test_an_image_that_is_damaged_fails_its_item_alone(data: Path) -> None:
    (data / "a.png").write_bytes((data / "a.png").read_bytes()[:-30])
    results = run(data, EchoBackend())
    assert len(results["failed"]) == 20
    assert "could not be decoded" in results["failed"][0]["error"]


@pytest.mark.parametrize("status", [None, 401, 404, 429, 500, 503])
def test_a_server_that_fails_stops_the_run_which_goes_on_later(data: Path, status: int | None) -> None:
    backend = EchoBackend(errors={"say 9": TaskError("no", status=status)})
    with pytest.raises(TaskError):
        run(data, backend, concurrency=3)
    assert backend.is_closed
    done = {row["id"] for row in recorded(data)}
    assert len(done) >= 7
    assert "i9" not in done
    again = EchoBackend()
    run(data, again)
    assert len(again.asked) == 20 - len(done)
    assert sorted(row["id"] for row in recorded(data)) == sorted(f"i{n}" for n in range(20))


def test_a_line_that_was_cut_is_answered_again(data: Path) -> None:
    run(data, EchoBackend())
    path = data.parent / "out" / ANSWERS
    whole = path.read_bytes()
    for cut in (1, 5, len(whole.splitlines()[-1]), len(whole) - 3):
        path.write_bytes(whole[:-cut])
        backend = EchoBackend()
        assert run(data, backend)["items"] == 20
        assert len(backend.asked) == 20 - whole[:-cut].count(b"\n")
        assert sorted(row["id"] for row in recorded(data)) == sorted(f"i{n}" for n in range(20))


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "other"},
        {"name": "docvqa"},
        {"benchmark": replace(EXACT, max_tiles=1)},
        {"benchmark": Benchmark(metric="anls")},
    ],
)
def test_other_settings_need_another_folder(data: Path, changes: dict[str, Any]) -> None:
    run(data, EchoBackend())
    with pytest.raises(ConfigError, match="other settings"):
        run(data, EchoBackend(), **changes)
    run(data, EchoBackend(), concurrency=1, limit=3)


def test_other_items_need_another_folder(data: Path) -> None:
    run(data, EchoBackend())
    with (data / "items.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"question": "new", "answer": "x"}))
    with pytest.raises(ConfigError, match="items"):
        run(data, EchoBackend())


def test_a_file_of_answers_that_is_broken(data: Path) -> None:
    run(data, EchoBackend())
    path = data.parent / "out" / ANSWERS
    path.write_bytes(b"{}\n" + path.read_bytes())
    with pytest.raises(ConfigError, match=r"line 1, is no answer"):
        run(data, EchoBackend())


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    with Records(tmp_path, {}), pytest.raises(ConfigError, match="Another evaluation"):
        Records(tmp_path, {})
    with Records(tmp_path, {}) as records:
        records.add(Record("1", "é\n\ud800", 0.5))
    with Records(tmp_path, {}) as records:
        assert records.done == {"1": Record("1", "é\n\ud800", 0.5)}


def test_a_folder_that_cannot_be_written(data: Path) -> None:
    (data.parent / "out").write_text("a file")
    with pytest.raises(ConfigError, match="cannot be written"):
        run(data, EchoBackend())


@pytest.mark.parametrize(
    "settings",
    [
        {"concurrency": 0},
        {"concurrency": True},
        {"limit": 0},
        {"benchmark": Benchmark(metric="none")},
        {"benchmark": Benchmark(metric="exact", open_metric="none")},
        {"benchmark": Benchmark(metric="exact", prompt="{answer}")},
        {"benchmark": Benchmark(metric="exact", prompt="{")},
        {"benchmark": Benchmark(metric="exact", prompt="{question.x}")},
        {"benchmark": Benchmark(metric="exact", prompt="{}")},
    ],
)
def test_settings_that_are_refused(data: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        evaluation(data, **settings)


def test_answers_that_were_cut_are_counted(data: Path) -> None:
    (data / "items.jsonl").write_text(json.dumps({"question": "long x", "answer": "x"}))
    assert run(data, EchoBackend())["cut"] == 1


# --- with the embedded model ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures to count in, and two broken lines."""
    folder = tmp_path_factory.mktemp("counting")
    rows = ["{"]
    for number, question in enumerate(questions("counted (0 to 5)", True, 10)):
        assert question.image is not None
        question.image.save(folder / f"{number}.png")
        row = {"image": f"{number}.png", "question": question.turn.question, "answer": question.turn.answer}
        rows.append(json.dumps(row))
    rows.append(json.dumps({"question": "No answer"}))
    (folder / "items.jsonl").write_text("\n".join(rows))
    return folder


def test_the_server_and_this_process_give_the_same(counting: Path, tmp_path: Path) -> None:
    llm, found = LLM(), []
    with serving(llm) as url:
        for number, backend in enumerate((backend_of(f"{url}/v1"), backend_of(llm))):
            each = Evaluation(data=counting, output=tmp_path / str(number), benchmark=replace(EXACT, max_tokens=20))
            found.append(each.run(backend, each.items()))
    assert found[0] == found[1]
    assert found[0]["score"] >= 80  # its card says 98 % of 300
    assert [each["line"] for each in found[0]["broken_lines"]] == [1, 12]


# --- killed -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_a_run_that_is_killed_again_and_again_goes_on(data: Path) -> None:
    """Then every item has exactly one line, and only those that had none are asked."""
    folder = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "tests.evaluation.killed", str(data), str(data.parent / "out")]
    subprocess.run(command, cwd=folder, env=os.environ | {"PYTHONPATH": str(folder)}, check=True, timeout=110)
    done = count_lines(data.parent / "out" / ANSWERS)
    assert 0 < done <= 20
    backend = EchoBackend()
    assert run(data, backend) == run(data, EchoBackend(), concurrency=1)
    assert len(backend.asked) == 20 - done
    assert sorted(row["id"] for row in recorded(data)) == sorted(f"i{n}" for n in range(20))


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
