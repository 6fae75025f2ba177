"""Building, choosing and doing without."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ternvl.errors import ConfigError
from ternvl.kernels import build, loader, panels, product
from ternvl.kernels.loader import available, library, load

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("TERNVL_KERNELS", raising=False)
    load.cache_clear()
    yield
    load.cache_clear()


@pytest.fixture
def empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No library is built, and the package's folder cannot be written."""
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setattr(build, "folders", lambda: (blocked / "_build", tmp_path / "cache"))
    return tmp_path / "cache"


def fake_compiler(folder: Path, script: str) -> str:
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def serves_torch(caplog: pytest.LogCaptureFixture, reason: str) -> None:
    assert not available()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert reason in caplog.text
    x, weight = torch.randn(3, 20), torch.randn(18, 20)
    assert torch.equal(product.linear(x, panels.pack(weight), 18), torch.nn.functional.linear(x, weight))
    assert not available()
    assert len(caplog.records) == 1, "tried once"


def test_a_compiler_that_is_not_there(
    empty: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    serves_torch(caplog, "no C++ compiler was found")


def test_a_compiler_that_fails(
    empty: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, "echo 'x.cpp: error: too old' >&2; exit 1"))
    serves_torch(caplog, "too old")
    assert list(empty.iterdir()) == [], "nothing is left behind"


def test_a_library_that_is_broken(
    empty: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, 'while [ "$1" != -o ]; do shift; done; echo broken >"$2"'))
    serves_torch(caplog, f"portable-{build.digest()}.so")


def test_a_library_that_computes_wrong_results(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if library() is None:
        pytest.skip("there is no compiler")
    load.cache_clear()
    caplog.clear()
    right = loader._product
    monkeypatch.setattr(loader, "_product", lambda *arguments: right(*arguments) + 1)
    serves_torch(caplog, "computes wrong results")


def test_the_variable_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERNVL_KERNELS", "torch")
    assert not available()
    monkeypatch.setenv("TERNVL_KERNELS", "sse")
    with pytest.raises(ConfigError, match="'sse'; it is one of auto, torch, portable, avx2, avx512"):
        available()


@pytest.mark.parametrize("isa", build.FLAGS)
def test_the_variable_names_an_instruction_set(isa: str, use_kernels: Callable[[str], None]) -> None:
    use_kernels(isa)
    loaded = library()
    assert loaded is not None
    assert loaded.isa == isa


def test_an_instruction_set_that_the_cpu_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    if library() is None:
        pytest.skip("there is no compiler")
    load.cache_clear()
    monkeypatch.setattr("ternvl.kernels.loader._best_isa", lambda: "portable")
    monkeypatch.setenv("TERNVL_KERNELS", "avx512")
    with pytest.raises(ConfigError, match="'avx512', but this CPU has only portable"):
        library()


def test_threads_are_torchs() -> None:
    """One OpenMP library in the process, whichever it is."""
    if library() is None or not Path("/proc/self/maps").exists():
        pytest.skip("there is no compiler, or this is not Linux")
    lines = Path("/proc/self/maps").read_text().splitlines()
    assert len({line.split()[-1] for line in lines if "omp" in Path(line.split()[-1]).name and ".so" in line}) == 1


def test_the_command_says_what_it_did(tmp_path: Path) -> None:
    compiler = fake_compiler(tmp_path, 'while [ "$1" != -o ]; do shift; done; echo made >"$2"')
    script = (
        "import sys, pathlib; from ternvl.kernels import build; "
        "build.folders = lambda: (pathlib.Path(sys.argv[1]), pathlib.Path('/nowhere')); build.main()"
    )

    def run(**env: str) -> str:
        command = [sys.executable, "-c", script, str(tmp_path / "out")]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stderr

    assert "no native kernels: /no/such/c++ cannot be run" in run(CXX="/no/such/c++")
    assert "native kernels are built for portable" in run(CXX=compiler)
    assert run(CXX="/no/such/c++") == "ternvl: native kernels are up to date.\n"
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == sorted(f"{isa}-{build.digest()}.so" for isa in build.FLAGS)
