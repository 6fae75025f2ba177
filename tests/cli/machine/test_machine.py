"""`ternvl info` and `ternvl doctor`: what they say is what the model and the machine are."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from ternvl.checkpoint.source import EMBEDDED
from ternvl.cli.machine import doctor, hardware, software
from ternvl.cli.machine.diagnosis import FAIL, NOTE, OK, Diagnosis
from ternvl.cli.machine.info import as_text
from ternvl.config import EngineConfig
from ternvl.engine.engine import Engine
from ternvl.kernels import build
from ternvl.llm import LLM
from ternvl.machine.cgroup import Cgroup
from tests.cli.calling import run
from tests.server.fakes import tiny_model


def test_info_is_true_of_the_loaded_model(capsys: pytest.CaptureFixture[str], folder: Path, offline: LLM) -> None:
    code, out, err = run(capsys, "info", folder, "--json")
    found = json.loads(out)
    assert (code, err, found["folder"]) == (0, "", str(folder))
    assert found["parameters"] == sum(parameter.numel() for parameter in tiny_model().parameters())
    assert found["files"]["bytes"] == (folder / "model.safetensors").stat().st_size
    assert (found["files"]["layout"], found["files"]["tensors"]) == ("original", len(tiny_model().state_dict()))
    assert found["images"] == {"tile_size": 56, "max_tiles": 12, "tokens_per_tile": 4, "max_tokens": 13 * 4}
    assert isinstance(offline.engine, Engine)
    bytes_per_token = offline.engine.kv_cache_bytes // offline.engine.kv_cache_tokens
    none, int8, int4 = found["precisions"]
    assert none["weights"] == 4 * found["parameters"]
    assert none["kv_cache"] == bytes_per_token * EngineConfig().max_model_len
    assert int4["weights"] < int8["weights"] < none["weights"]
    assert found["machine"]["auto"] == "none"
    code, text, _ = run(capsys, "info", folder)
    assert code == 0
    assert f"not quantised, because {found['machine']['why_unquantised']}" in text
    assert f"({found['machine']['why_kernels']})" in text


def test_a_model_that_is_too_large_does_not_fit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setattr(Cgroup, "free_memory", lambda self: 1000)
    out = run(capsys, "info", folder)[1]
    assert [line.split()[-1] for line in out.splitlines()[-3:]] == ["no"] * 3


def test_info_of_a_model_without_weights_here(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((EMBEDDED / "config.json").read_bytes())
    code, out, err = run(capsys, "info", tmp_path)
    assert (code, out) == (1, "")
    assert "holds neither model.safetensors nor" in err
    described = json.loads(run(capsys, "info", "--json")[1]) | {"folder": None, "files": None}
    assert "not on this machine" in as_text(described)


def test_doctor_finds_nothing_wrong_here(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "doctor", "--json")
    found = json.loads(out)
    assert (code, err, found["runs"]) == (0, "", True)
    rows = {row["name"]: row for row in found["checks"]}
    assert torch.__version__ in rows["Packages"]["found"]
    assert f"{torch.get_num_threads()} thread" in rows["Processors"]["found"]
    assert [row["name"] for row in found["checks"] if row["status"] != "ok" and not row["advice"]] == []
    code, out, _ = run(capsys, "doctor")
    assert (code, out.splitlines()[-1]) == (0, "ternvl runs here.")


def only(check: Any) -> Diagnosis:
    (finding,) = check()
    assert isinstance(finding, Diagnosis)
    return finding


def test_what_keeps_ternvl_from_running(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(software.PACKAGES, "no-such-package", "no_such_package")
    assert (only(software.packages).status, only(software.packages).found) == (FAIL, "no-such-package is missing")
    code, out, _ = run(capsys, "doctor")
    assert (code, out.splitlines()[-1]) == (1, "ternvl cannot run here.")
    monkeypatch.undo()
    monkeypatch.setattr(software, "_least", lambda: {"numpy": "99.1", "pillow": "1.0"})
    assert "needs 99.1" in only(software.packages).found
    assert "pillow" not in only(software.packages).found
    monkeypatch.setenv("TERNVL_KERNELS", "sse9")
    assert only(hardware.kernels).status == FAIL
    monkeypatch.setattr(Cgroup, "memory", lambda self: 10**8)
    monkeypatch.setattr(Cgroup, "free_memory", lambda self: 10**7)
    assert only(hardware.memory).status == FAIL
    assert only(hardware.memory).found == "10.0 MB free, with a cgroup's limit of 100.0 MB"


def test_what_is_slower_is_a_note(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "does not run" in only(hardware.compiler).found
    monkeypatch.setattr(build, "find", lambda isa: None if isa != "isa" else Path())
    monkeypatch.setattr(build, "isas_here", lambda: ["portable"])
    assert only(hardware.kernels).found == "not built for portable yet"
    monkeypatch.setattr(Cgroup, "processors", lambda self: 0.5)
    before = os.environ.get("OMP_NUM_THREADS")
    torch.set_num_threads(2)
    try:
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        assert "Set OMP_NUM_THREADS=1:" in only(hardware.processors).advice
        monkeypatch.delenv("OMP_NUM_THREADS")
        assert only(hardware.processors).status == OK
    finally:
        torch.set_num_threads(int(before or os.cpu_count() or 1))
    pages = tmp_path / "enabled"
    pages.write_text("always madvise [never]\n")
    monkeypatch.setattr(hardware, "_HUGE_PAGES", pages)
    assert only(hardware.huge_pages).status == NOTE
    pages.write_text("always [madvise] never\n")
    assert only(hardware.huge_pages) == Diagnosis("Huge pages", OK, "madvise")


def test_a_check_that_fails_does_not_end_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise ImportError("libgomp.so.1")

    monkeypatch.setattr(doctor, "CHECKS", (broken, software.python))
    first, second = doctor.findings()
    assert (first.status, first.found, second.status) == (FAIL, "ImportError: libgomp.so.1", OK)


def test_the_compiler_is_named() -> None:
    found = only(hardware.compiler)
    asked = subprocess.run([*build.find_compiler(), "--version"], capture_output=True, text=True, check=True)
    assert found.status == OK
    assert asked.stdout.splitlines()[0] in found.found
