"""The benchmark of peers with fake contestants, its report, and ternvl's own worker on a tiny checkpoint."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.peers import __main__ as peers
from benchmarks.peers import chart, measure, report, workloads
from benchmarks.peers.contestants import CONTESTANTS, ROOT, Contestant, Places, chosen
from benchmarks.peers.process import Process, Unavailable
from ternvl.checkpoint import weights
from ternvl.cli import main
from tests.fakes import tiny_tokenizer
from tests.server.fakes import tiny_model

DECODE, TILE = workloads.WORKLOADS["decode"], workloads.WORKLOADS["tile"]
FAKE = """
import sys
sys.path.insert(0, sys.argv[1])
from protocol import Answer, Contestant, UnavailableError, serve
print("noise that is no message")
def load():
    if sys.argv[2] == "unavailable":
        raise UnavailableError("there is none")
    if sys.argv[2] == "broken":
        raise RuntimeError("two\\nlines")
    def answer(asks):
        if asks[0].text == "fail":
            raise ValueError("cannot")
        if asks[0].text == "die":
            sys.exit(3)
        return [Answer(7, ask.max_tokens - (ask.text == "short"), 0.5, 0.5 + ask.max_tokens / 10) for ask in asks]
    return Contestant(answer, "fake 1", 10)
serve(load)
"""


def result(**rows: dict[str, Any]) -> report.Result:
    """A result whose decode workload has these rows; `_` in a name stands for `-`."""
    found = {
        name.replace("__", "-"): {"median": {}, "repeats": 5, "prompt_tokens": 100, "missing": None} | row
        for name, row in rows.items()
    }
    return {
        "date": "2026-11-24",
        "machine": {"cpu": "Some CPU", "num_cpus": 2, "family": "family 25, model 1", "instructions": ["avx2"]},
        "limits": {
            "isa": "avx2",
            "num_threads": 2,
            "read_bytes_per_s": 20e9,
            "int8_ops_per_s": 1e12,
            "fp32_ops_per_s": 2e11,
        },
        "settings": {"repeats": 5},
        "versions": {"ternvl": "ternvl 0.1.0"},
        "decode_bytes": {"openvino-int8": 400_000_000},
        "contestants": {name: each.title for name, each in CONTESTANTS.items()},
        "missing": {},
        "workloads": {"decode": {"title": "decode, one stream", "rows": found}},
    }


FULL = result(
    **{
        "ternvl__int8": {"median": {"decode": 50.0}},
        "ternvl__int4": {"median": {"decode": 60.0}},
        "openvino__int8": {"median": {"decode": 40.0}},
        "openvino__int4": {"median": {"decode": 48.0}},
        "llamacpp__q8_0": {"median": {"decode": 24.0}, "prompt_tokens": 50, "repeats": 2},
        "transformers__fp32": {"missing": "not installed: python is missing"},
    }
)


def start(tmp_path: Path, kind: str = "works") -> Process:
    script = tmp_path / "fake.py"
    script.write_text(FAKE, encoding="utf-8")
    command = [sys.executable, str(script), str(ROOT / "benchmarks" / "peers"), kind]
    return Process(command, root=ROOT, log=tmp_path / "log")


def ask(text: str, max_tokens: int = 5) -> dict[str, Any]:
    return {"text": text, "image": None, "max_tokens": max_tokens}


def test_the_table() -> None:
    lines = report.table(FULL).splitlines()
    assert lines[0] == (
        "|  | ternvl : OpenVINO | target | ternvl int8 | ternvl int4 | OpenVINO int8 | OpenVINO int4 | llama.cpp Q8_0 |"
    )
    assert lines[2:] == [
        "| decode, one stream, int8 | **1.25 x** | ≥ 1.25 x | 50.0 tok/s | - | 40.0 tok/s | - | 24.0 tok/s |",
        "| decode, one stream, int4 | 1.25 x | ≥ 1.7 x | - | 60.0 tok/s | - | 48.0 tok/s | - |",
    ]


def test_the_spread_is_half_of_the_range() -> None:
    made = result(ternvl__int8={"median": {"decode": 50.0}, "values": {"decode": [48.0, 50.0, 53.0]}})
    assert "| 50.0 tok/s ±5% |" in report.table(made)


def test_the_processor_is_named() -> None:
    assert report.processor(FULL) == "Some CPU, 2 CPUs (family 25, model 1, avx2, kernels for avx2)"
    assert report.processor(FULL, briefly=True) == "Some CPU, 2 CPUs (family 25, model 1, kernels for avx2)"


def test_what_neighbours_leave() -> None:
    made = result(ternvl__int8={"median": {"decode": 50.0}}, openvino__int8={"median": {"decode": 40.0}})
    assert report.beside(made) == ""
    made["workloads"]["decode+2"] = {
        "title": DECODE.beside(2).title,
        "rows": {"ternvl-int8": {"median": {"decode": 20.0}}, "openvino-int8": {"median": {}}},
    }
    assert DECODE.beside(2).title == "decode, one stream, 2 busy neighbours"
    assert report.beside(made).splitlines() == [
        "|  | busy neighbours | ternvl int8 | OpenVINO int8 |",
        "| --- | --- | --- | --- |",
        "| decode, one stream | 2 | 0.40 (20.0 tok/s) | - |",
    ]


def test_targets_in_units_of_their_own() -> None:
    line = next(line for line in report.LINES if line.metric == "resident memory")
    assert line.target_text == "≤ 1.25 GB"
    for ours, text in ((1.2e9, "**0.80 x**"), (1.5e9, "1.00 x")):
        made = result()
        rows = {"ternvl-int8": ours, "openvino-int8": 1.5e9}
        made["workloads"] = {
            "start": {"title": "", "rows": {name: {"median": {line.metric: each}} for name, each in rows.items()}}
        }
        assert report.shown_ratio(made, line) == text


def test_notes_name_contestants_that_did_less() -> None:
    assert report.notes(FULL) == [
        "llama.cpp Q8_0, decode, one stream: only 50 of 100 prompt tokens",
        "transformers fp32, decode, one stream: not installed: python is missing",
        "2 repeats only: llama.cpp Q8_0 (decode)",
    ]
    assert report.shares(FULL) == "OpenVINO int8, decode: 400 MB a token; 16.0 GB/s read, 80 % of 20.0"


def test_a_document_is_rewritten_between_its_markers() -> None:
    before = f"a\n{report.BEGIN}\nold\n{report.END}\nz\n"
    after = report.rewrite(before, report.section(FULL))
    assert after == f"a\n{report.BEGIN}\n{report.section(FULL)}\n{report.END}\nz\n"
    assert report.rewrite(after, None) == f"a\n{report.BEGIN}\n{report.NOTHING}\n{report.END}\nz\n"
    assert report.rewrite(after, report.section(FULL)) == after
    with pytest.raises(ValueError, match="lacks the markers"):
        report.rewrite("no section", None)


def test_the_summary() -> None:
    assert report.summary(FULL).splitlines()[3:7] == [
        "|  | ternvl | OpenVINO | llama.cpp | transformers | ternvl : OpenVINO |",
        "| --- | --- | --- | --- | --- | --- |",
        "| decode, one stream, int8 | 50.0 tok/s | 40.0 tok/s | 24.0 tok/s | - | 1.25 x |",
        "| decode, one stream, int4 | 60.0 tok/s | 48.0 tok/s | - | - | 1.25 x |",
    ]


def test_the_documents_show_the_latest_result() -> None:
    results = sorted((ROOT / "benchmarks" / "results").glob("peers-*.json"))
    latest = json.loads(results[-1].read_text(encoding="utf-8")) if results else None
    for name, body in (("README.md", report.summary), (report.PAGE, report.full)):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert report.rewrite(text, body(latest) if latest else None) == text


def test_the_chart(tmp_path: Path) -> None:
    chart.draw(FULL, tmp_path / "chart.svg")
    text = (tmp_path / "chart.svg").read_text(encoding="utf-8")
    assert text.count('id="axes_') >= 1
    assert "<svg" in text


def test_a_worker_answers_fails_and_continues(tmp_path: Path) -> None:
    process = start(tmp_path)
    assert (process.version, process.decode_bytes) == ("fake 1", 10)
    response = process.ask([ask("one"), ask("two", 3)])
    assert [answer["output_tokens"] for answer in response["answers"]] == [5, 3]
    assert 0 < response["resident_bytes"] <= response["peak_bytes"]
    assert process.ask([ask("fail")]) == {"error": "ValueError: cannot"}
    assert "answers" in process.ask([ask("one")])
    assert process.ask([ask("die")]) == {"error": "the process ended with status 3"}
    process.close()


@pytest.mark.parametrize(("kind", "reason"), [("unavailable", "there is none"), ("broken", "RuntimeError: two lines")])
def test_a_worker_that_cannot_load(tmp_path: Path, kind: str, reason: str) -> None:
    with pytest.raises(Unavailable, match=f"^{reason}$"):
        start(tmp_path, kind)


def test_contestants_alternate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    ones = [CONTESTANTS["openvino-int8"], CONTESTANTS["ternvl-none"], CONTESTANTS["transformers-fp32"]]
    prompts = workloads.Prompts(tmp_path, lambda text: len(text.split()))

    class Fake:
        """A process that answers at once."""

        def __init__(self, name: str) -> None:
            self.name = name

        def ask(self, asks: list[dict[str, Any]]) -> dict[str, Any]:
            order.append(self.name)
            answer = {"prompt_tokens": 9, "output_tokens": asks[0]["max_tokens"], "first_s": 1.0, "last_s": 3.0}
            return {"answers": [answer], "seconds": 3.0}

    def process(contestant: Contestant, workload: workloads.Workload) -> Fake:
        if contestant.peer == "transformers":
            raise Unavailable("not here")
        return Fake(contestant.name)

    loaded = measure.Stage(Places(tmp_path, tmp_path), prompts, tmp_path / "log")
    monkeypatch.setattr(loaded, "process", process)
    settings = measure.Settings(3, {"openvino:decode": 2}, max_tokens=5)
    seen: list[int] = []

    def done(rows: dict[str, dict[str, measure.Row]]) -> None:
        seen.append(sum(len(row.values.get("decode", [])) for row in rows["decode"].values()))

    rows = measure.run(loaded, prompts, ones, [DECODE], settings, lambda text: None, done)["decode"]
    assert seen[-1] == 5
    assert sorted(set(seen)) == [1, 2, 3, 4, 5]
    assert order == ["openvino-int8", "ternvl-none", "ternvl-none", "openvino-int8", "ternvl-none"]
    made = rows["openvino-int8"].as_dict()
    assert (made["median"], made["repeats"], made["prompt_tokens"]) == ({"decode": 2.0}, 2, 9)
    assert rows["transformers-fp32"].as_dict()["missing"] == "not here"


def test_answers_of_another_length_do_not_count() -> None:
    response = {"answers": [{"output_tokens": 4}]}
    assert workloads.problem(DECODE, response, [ask("x", 5)]) == "answers of [4] tokens instead of [5]"
    assert workloads.problem(DECODE, {"error": "no"}, [ask("x", 5)]) == "no"
    assert workloads.problem(DECODE, response, [ask("x", 4)]) is None


def test_a_contestant_that_is_not_installed_is_missing(tmp_path: Path) -> None:
    prompts = workloads.Prompts(tmp_path, len)
    loaded = measure.Stage(Places(tmp_path / "no", tmp_path / "no"), prompts, tmp_path / "log")
    for contestant in CONTESTANTS.values():
        with pytest.raises(Unavailable, match=r"not installed: .* is missing"):
            loaded.process(contestant, DECODE)
    assert set(loaded.missing) == set(CONTESTANTS)


def test_little_memory_ends_the_least_recently_used_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []

    class Fake:
        """A process that records its end."""

        def __init__(self, name: str) -> None:
            self.name, self.is_alive = name, True

        def ask(self, asks: list[dict[str, Any]]) -> dict[str, Any]:
            return {"error": "not asked for"}

        def close(self) -> None:
            ended.append(self.name)

    free = {"bytes": measure.ROOM_BYTES}
    loaded = measure.Stage(Places(tmp_path, tmp_path), workloads.Prompts(tmp_path, len), tmp_path / "log")
    monkeypatch.setattr(loaded, "start", lambda contestant, mode: Fake(contestant.name))
    monkeypatch.setattr("benchmarks.peers.machine.available_bytes", lambda: free["bytes"])
    one, two, three = (CONTESTANTS[name] for name in ("openvino-int8", "ternvl-none", "transformers-fp32"))
    for contestant in (one, two, three, one):
        loaded.process(contestant, DECODE)
    assert ended == []
    free["bytes"] -= 1
    loaded.process(one, DECODE)
    assert ended == ["ternvl-none", "transformers-fp32"]
    first = loaded.process(one, DECODE)
    first.is_alive = False  # type: ignore[misc]
    assert loaded.process(one, DECODE) is not first
    assert ended[2:] == ["openvino-int8"]
    loaded.close()
    assert ended[3:] == ["openvino-int8"]


def test_prompts_are_the_same_in_a_turn_and_differ_otherwise(tmp_path: Path) -> None:
    prompts = workloads.Prompts(tmp_path, lambda text: len(text.split()) + 20 + text.count("!") + text.count("?"))
    streams = workloads.WORKLOADS["streams"]
    first, again, other = (prompts.asks(streams, turn) for turn in (0, 0, 1))
    assert first == again
    assert len({each["text"] for each in first + other}) == 16
    assert prompts.text(random.Random(0), 950).count(" ") == 929
    pictures = {Path(prompts.asks(TILE, turn)[0]["image"]).read_bytes() for turn in (0, 0, 1)}
    assert len(pictures) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokenizer", "x", "--peers", "vllm"], "There is no contestant 'vllm'; there are ternvl, openvino,"),
        (["--tokenizer", "x", "--workloads", "tiles", "poem"], "There is no workload 'poem'; there are tile, tiles,"),
        (["--tokenizer", "x", "--repeats", "0"], "--repeats is 0, but must be at least 1."),
        (["--tokenizer", "x", "--repeats-of", "poem=3"], "--repeats-of 'poem=3' does not have the form"),
        (["--tokenizer", "x", "--max-tokens", "1"], "--max-tokens is 1, but must be at least 2."),
        (["--tokenizer", "x", "--neighbours", "0"], "--neighbours is 0, but must be at least 1."),
        (["--tokenizer", "x", "--long-tokens", "5"], "--long-tokens is 5, but must be at least 100."),
        ([], "--tokenizer DIR is required"),
    ],
)
def test_wrong_settings(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "peers", *arguments])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"ternvl bench peers: {message}")


def test_names() -> None:
    assert [each.name for each in chosen(["openvino", "ternvl-none"])] == [
        "ternvl-none",
        "openvino-int8",
        "openvino-int4",
    ]
    assert len(chosen([])) == len(CONTESTANTS) == 9


@pytest.mark.timeout(300)  # three processes import torch
def test_ternvl_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = tiny_tokenizer().full.to_str()
    folder = tmp_path / "models" / "original"
    weights.save(tiny_model(), folder, dtype=torch.float32)
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    out = tmp_path / "out.json"
    where = ["--tokenizer", str(folder), "--models", str(tmp_path / "models"), "--envs", str(tmp_path)]
    what = ["--peers", "ternvl-none", "transformers-fp32", "--workloads", "decode", "streams", "start"]
    few = ["--repeats", "2", "--repeats-of", "start=1", "--max-tokens", "3", "--neighbours", "1"]
    code = peers.main([*where, "--out", str(out), *what, *few, "--no-readme"])
    assert code == 0, capsys.readouterr().err
    made = json.loads(out.read_text(encoding="utf-8"))
    assert made["missing"] == {"transformers-fp32": "not installed: python is missing"}
    for name, metrics in (
        ("decode", {"decode"}),
        ("decode+1", {"decode"}),
        ("streams", {"all streams"}),
        ("start", {"start to ready", "start to first answer", "resident memory"}),
    ):
        row = made["workloads"][name]["rows"]["ternvl-none"]
        assert row["missing"] is None
        assert set(row["median"]) == metrics
        assert all(value > 0 for values in row["values"].values() for value in values)
        assert row["repeats"] == (1 if name == "start" else 2)
    assert made["decode_bytes"]["ternvl-none"] > 0
    assert out.with_suffix(".svg").exists()
    assert "ternvl none" in capsys.readouterr().out
