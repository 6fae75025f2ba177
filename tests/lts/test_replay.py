"""The answers of this release line, asked again: the promise of long-term support."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ternvl.checkpoint import weights
from ternvl.lts import lock
from ternvl.lts.lock import RecordedAnswer, Transcript
from ternvl.lts.transcripts import compare, ulps_between
from tests.cli.calling import run
from tests.fakes import tiny_tokenizer
from tests.lts.flipped import LOCK, flip
from tests.quant.private_cache import private_cache
from tests.server.fakes import tiny_model

_COMPUTES = ("torch:", "numpy:", "pillow:")
"""The packages whose versions may change bits."""


def verify(capsys: pytest.CaptureFixture[str], path: Path, folder: Path, *more: str | Path) -> tuple[int, str, Any]:
    """Status, standard error and figures of `ternvl verify --lock`."""
    code, _, err = run(capsys, "verify", "--lock", path, "--json", folder / "figures.json", *more)
    return code, err, json.loads((folder / "figures.json").read_text())


@pytest.mark.parametrize("isa", ["avx2", "portable"])
def test_every_answer_of_the_release_line_is_the_same(
    isa: str, use_kernels: Callable[[str], None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    use_kernels(isa)
    code, err, figures = verify(capsys, LOCK, tmp_path)
    assert (code, err) == (0, ""), "CONTRIBUTING.md says what a change that moves bits needs"
    assert figures["are_answers_equal"]
    assert figures["instruction_set"] == figures["compared_with"] == isa
    rows = figures["transcripts"]
    assert [row["name"] for row in rows] == [each.name for each in lock.read(LOCK).transcripts]
    assert all(row["num_equal"] == row["num_tokens"] > 2 for row in rows)
    assert max(row["distance"] for row in rows) < 5e-5
    others = [each for each in figures["package_differences"] if each.startswith(_COMPUTES)]
    if figures["torch"] == lock.read(LOCK).transcripts[0].answers[isa].torch and not others:
        assert figures["max_ulps"] == 0


def test_the_lock_has_texts_images_tools_schemas_sampling_and_adapters() -> None:
    requests = [each.request for each in lock.read(LOCK).transcripts]
    assert {name for request in requests for name in request} >= {"tools", "json_schema", "adapter", "seed"}
    kinds = {"jpeg", "png"}
    assert {kind for kind in kinds if any(f"image/{kind}" in json.dumps(request) for request in requests)} == kinds
    answers = [answer for each in lock.read(LOCK).transcripts for answer in each.answers.values()]
    assert any(answer.tool_calls for answer in answers)
    assert {answer.finish_reason for answer in answers} >= {"stop", "length", "tool_calls"}


def test_an_answer_that_differs_fails(
    use_kernels: Callable[[str], None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    use_kernels("portable")
    locked = lock.read(LOCK)
    first, *rest = locked.transcripts[:2]
    answer = first.answers["portable"]
    other = replace(answer, token_ids=(*answer.token_ids[:3], 5, *answer.token_ids[4:]))
    changed = replace(locked, transcripts=(replace(first, answers={"portable": other}), *rest))
    (tmp_path / "changed.lock").write_bytes(changed.content())
    code, err, figures = verify(capsys, tmp_path / "changed.lock", tmp_path)
    assert code == 1
    assert err == (
        f"ternvl: 1 of 2 answers differ from those of the lock; text: token 4 is {answer.token_ids[3]}, expected 5.\n"
    )
    assert [row["num_equal"] for row in figures["transcripts"]] == [3, len(rest[0].answers["portable"].token_ids)]


def test_another_instruction_set_is_said(
    use_kernels: Callable[[str], None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    use_kernels("torch")
    locked = lock.read(LOCK)
    (tmp_path / "two.lock").write_bytes(replace(locked, transcripts=locked.transcripts[:4:3]).content())
    code, out, _ = run(capsys, "verify", "--lock", tmp_path / "two.lock")
    assert code == 0
    assert "Instruction set: torch, for which the lock has no answers (it has avx2, portable); compared with" in out
    assert "All 2 answers are equal" in out
    assert "log probabilities differ by up to" in out
    code, _, err = run(capsys, "verify", "--lock", tmp_path / "two.lock", "--exact")
    assert code == 1
    assert "on torch, for which it has no answers" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--lock", str(LOCK), "--min-top1", "0.9"], "--min-top1 is not for --lock."),
        (["--lock", str(LOCK), "--quantization", "int8"], "--quantization is not for --lock."),
        (["--lora", "french"], "--lora needs --lock."),
        (["--exact"], "--exact needs --lock."),
        (["--lock", "no.lock"], "The lock no.lock cannot be read: No such file or directory."),
        (["--lock", str(LOCK), "--json", "no/figures.json"], "no/figures.json cannot be written"),
    ],
)
def test_options_of_the_other_comparison_are_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    code, out, err = run(capsys, "verify", *arguments)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert says in err


def test_a_quantised_model_is_locked_with_its_converted_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cache, folder, path = private_cache(monkeypatch, tmp_path), tmp_path / "tiny", tmp_path / "tiny.lock"
    weights.save(tiny_model(), folder, dtype=torch.float32)
    (folder / "tokenizer.json").write_text(tiny_tokenizer().full.to_str(), encoding="utf-8")
    flags = ["--quantization", "int8", "--max-model-len", "1024"]
    assert run(capsys, "lock", folder, "-o", path, *flags)[0] == 0
    locked = lock.read(path)
    (converted,) = cache.glob("*.safetensors")
    assert locked.quantized == lock.FileState.of(converted.read_bytes())
    assert locked.settings["layers"]["language_model.model.layers.0.qkv"].startswith("int8")
    assert (locked.model, locked.settings["quantization"]) == ("tiny", "int8")
    code, err, figures = verify(capsys, path, tmp_path, folder, "--exact")
    assert (code, err, figures["max_ulps"]) == (0, "", 0)
    flip(converted, converted.stat().st_size - 1)
    code, _, err = run(capsys, "verify", folder, "--lock", path)
    assert code == 1
    assert "the quantised file: expected" in err


def answer(token_ids: tuple[int, ...], *logprobs: float, **more: Any) -> RecordedAnswer:
    given = {"text": "a", "tool_calls": (), "finish_reason": "stop", "torch": "AVX2"} | more
    return RecordedAnswer(token_ids, tuple(value.hex() for value in logprobs), **given)


def transcript(answered: RecordedAnswer, prompt: tuple[int, ...] = (1,), images: tuple[str, ...] = ()) -> Transcript:
    return Transcript("t", {}, prompt, images, {"x": answered})


@pytest.mark.parametrize(
    ("found", "fault", "num_equal"),
    [
        (transcript(answer((1, 2), -0.5, -1.0)), "", 2),
        (transcript(answer((1, 3), -0.5, -1.0)), "token 2 is 3, expected 2", 1),
        (transcript(answer((1,), -0.5)), "token 2 is the end, expected 2", 1),
        (transcript(answer((1, 2, 3), -0.5, -1.0, -1.0)), "token 3 is 3, expected the end", 2),
        (transcript(answer((1, 2), -0.5, -1.0, text="b")), "text is 'b', expected 'a'", 2),
        (transcript(answer((1, 2), -0.5, -1.0, finish_reason="length")), "finish reason is 'length'", 2),
        (transcript(answer((1, 2), -0.5, -1.0), prompt=(2,)), "the prompt's tokens differ", 2),
        (transcript(answer((1, 2), -0.5, -1.0), images=("ff",)), "the pixels of an image differ", 2),
    ],
)
def test_what_differs_is_said(found: Transcript, fault: str, num_equal: int) -> None:
    (row,) = compare([transcript(answer((1, 2), -0.5, -1.0))], [found], "x", "x")
    assert row.fault.startswith(fault)
    assert bool(row.fault) == bool(fault)
    assert (row.num_tokens, row.num_equal, row.ulps) == (2, num_equal, 0)


def test_differences_are_counted_in_units_of_the_last_place() -> None:
    for value in (-0.5, -1.0, -3.25e-6, -0.0, -100.0):
        near = np.float32(value)
        for count in range(1, 5):
            near = np.nextafter(near, np.float32(-np.inf))
            assert ulps_between(float(np.float32(value)), float(near)) == count
    assert ulps_between(-0.0, 0.0) == 0
    old, new = answer((1, 2), -0.5, -1.0), answer((1, 2), -0.5, float(np.nextafter(np.float32(-1), np.float32(0))))
    (row,) = compare([transcript(old)], [transcript(new)], "x", "x")
    assert (row.ulps, row.distance, row.fault) == (1, 2**-24, "")
