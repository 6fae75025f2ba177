"""Building, choosing and doing without."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from ternvl.errors import ConfigError
from ternvl.kernels import build, loader, panels, product
from ternvl.kernels.loader import available, library, load
from tests.waiting import eventually

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


@pytest.mark.timeout(300)
def test_the_sources_are_valid_for_the_best_instruction_set() -> None:
    """The tests compile and run only the instruction sets of this CPU."""
    try:
        compiler, others = build.find_compiler(), set(build.FLAGS) - set(build.isas_here())
    except build.BuildError as error:
        pytest.skip(str(error))
    if not others:
        pytest.skip("this CPU has every instruction set")

    def check(isa: str, source: Path) -> str:
        flags = (*build.COMMON_FLAGS, *build.MORE_FLAGS, *build.FLAGS[isa], f"-I{build.SOURCES}", "-fsyntax-only")
        return subprocess.run([*compiler, *flags, str(source)], capture_output=True, text=True).stderr

    flags = {isa: set(build.FLAGS[isa]) for isa in others}
    most = [isa for isa in others if not any(flags[isa] < flags[other] for other in others)]
    jobs = [(isa, source) for isa in most for source in build.sources()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        assert "".join(pool.map(check, *zip(*jobs, strict=True))) == ""


def test_the_instruction_sets_of_this_cpu_end_with_the_best() -> None:
    if not available():
        pytest.skip("there are no kernels")
    here = build.isas_here()
    assert here[0] == next(iter(build.FLAGS))
    assert here[-1] == build.best_isa()
    assert here == [isa for isa in build.FLAGS if isa in here], "the slowest first"


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
    assert [path.name for path in empty.iterdir()] == ["lock"], "nothing is left behind"


def test_a_library_that_is_broken(
    empty: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, 'while [ "$1" != -o ]; do shift; done; echo broken >"$2"'))
    serves_torch(caplog, f"isa-{build.digest()}.so")


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
    with pytest.raises(ConfigError, match="'sse'; it is one of auto, torch, portable, avx2, avxvnni, avx512"):
        available()


@pytest.mark.parametrize("isa", build.FLAGS)
def test_the_variable_names_an_instruction_set(isa: str, use_kernels: Callable[[str], None]) -> None:
    use_kernels(isa)
    loaded = library()
    assert loaded is not None
    assert loaded.isa == isa


def test_it_says_why_a_library_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    if library() is None:
        assert loader.why_chosen() == "they cannot be built or loaded"
        return
    assert loader.why_chosen() == "the best that this CPU has"
    monkeypatch.setenv("TERNVL_KERNELS", next(iter(build.FLAGS)))
    assert loader.why_chosen() == "TERNVL_KERNELS chooses them"
    monkeypatch.setenv("TERNVL_KERNELS", "torch")
    assert loader.why_chosen() == "TERNVL_KERNELS chooses none"
    monkeypatch.setenv("TERNVL_KERNELS", "auto")
    monkeypatch.setattr(loader, "library", lambda: None)
    assert loader.why_chosen() == "they cannot be built or loaded"


def test_an_instruction_set_that_the_cpu_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    if library() is None:
        pytest.skip("there is no compiler")
    load.cache_clear()
    monkeypatch.setattr(build, "isas_here", lambda: ["portable"])
    monkeypatch.setenv("TERNVL_KERNELS", "avx512")
    with pytest.raises(ConfigError, match="'avx512', but this CPU has only portable"):
        library()


def test_threads_are_torchs() -> None:
    """One OpenMP library in the process, whichever it is."""
    if library() is None or not Path("/proc/self/maps").exists():
        pytest.skip("there is no compiler, or this is not Linux")
    lines = Path("/proc/self/maps").read_text().splitlines()
    assert len({line.split()[-1] for line in lines if "omp" in Path(line.split()[-1]).name and ".so" in line}) == 1


MAKES_A_FILE = 'while [ "$1" != -o ]; do shift; done; echo made >"$2"'
BUILDS = (
    "import sys, pathlib; from ternvl.kernels import build; "
    "build.folders = lambda: (pathlib.Path(sys.argv[1]), pathlib.Path('/nowhere')); "
)


def builder(folder: Path, code: str, **env: str) -> subprocess.Popen[str]:
    """A process that builds into a folder."""
    command = [sys.executable, "-c", BUILDS + code, str(folder)]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | env, stderr=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> str:
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return errors


def test_the_command_says_what_it_does(tmp_path: Path) -> None:
    compiler, out = fake_compiler(tmp_path, MAKES_A_FILE), tmp_path / "out"
    code = "build.main(tuple(build.FLAGS))"
    assert "no native kernels: /no/such/c++ cannot be run" in said(builder(out, code, CXX="/no/such/c++"))
    plan, done = said(builder(out, code, CXX=compiler)).splitlines()
    assert plan.startswith("ternvl: compiling the CPU kernels for portable")
    assert plan.endswith(" s on an idle machine.")
    assert done.startswith("ternvl: native kernels are built for portable")
    assert said(builder(out, code, CXX="/no/such/c++")) == "ternvl: native kernels are up to date.\n"
    names = sorted(path.name for path in out.glob("*.so"))
    assert names == sorted(f"{isa}-{build.digest()}.so" for isa in build.FLAGS)


def test_a_library_of_other_sources_is_not_taken(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "portable-0123456789abcdef.so").touch()
    code = "build.main(('portable',))"
    assert "no native kernels: /no/such/c++ cannot be run" in said(builder(out, code, CXX="/no/such/c++"))
    (out / f"portable-{build.digest()}.so").touch()
    assert said(builder(out, code, CXX="/no/such/c++")) == "ternvl: native kernels are up to date.\n"


def test_only_the_instruction_set_of_this_cpu_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if library() is None:
        pytest.skip("there is no compiler")
    here = build.isas_here()
    monkeypatch.setattr(build, "folders", lambda: (tmp_path / "out", tmp_path / "cache"))
    monkeypatch.setattr(build, "isas_here", lambda: here)
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, MAKES_A_FILE))
    assert build.build() == here[-1:]
    assert [path.name for path in (tmp_path / "out").glob("*.so")] == [f"{here[-1]}-{build.digest()}.so"]
    assert build.build() == []


def test_two_processes_compile_once(tmp_path: Path) -> None:
    """The second one waits for the first, says so, and finds the library."""
    script = f'echo "$*" >>{tmp_path}/log; sleep 0.05; {MAKES_A_FILE}'
    compiler, out = fake_compiler(tmp_path, script), tmp_path / "out"
    code = "build.main(('portable',))"
    first = builder(out, code, CXX=compiler)
    while not (tmp_path / "log").exists():
        assert first.poll() is None
        time.sleep(0.01)
    assert said(builder(out, code, CXX=compiler)).splitlines() == [
        "ternvl: waiting for another process, which is compiling the CPU kernels.",
        "ternvl: native kernels are up to date.",
    ]
    assert "built for portable" in said(first)
    assert len((tmp_path / "log").read_text().splitlines()) == len(build.sources()) + 1


def test_a_start_compiles_beside_the_caller_and_is_waited_for(tmp_path: Path) -> None:
    compiler, out = fake_compiler(tmp_path, MAKES_A_FILE), tmp_path / "out"
    code = "build.start(); build.main(('portable',))"
    lines = said(builder(out, code, CXX=compiler, TERNVL_KERNELS="portable")).splitlines()
    assert sum("compiling" in line for line in lines) == 1
    assert not any("waiting" in line for line in lines)


def test_an_end_of_the_process_ends_the_compilers(tmp_path: Path) -> None:
    compiler, out = fake_compiler(tmp_path, f"touch {tmp_path}/begun; exec sleep 60"), tmp_path / "out"
    code = f"build.start(); log = pathlib.Path({str(tmp_path)!r}, 'begun')\nwhile not log.exists(): pass"
    assert "compiling" in said(builder(out, code, CXX=compiler, TERNVL_KERNELS="portable"))
    assert [path.name for path in out.iterdir()] == ["lock"]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs the list of threads that Linux gives")
def test_a_team_ends_and_starts_again() -> None:
    if not loader.available():
        pytest.skip("without kernels nothing is released")

    def count() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    def compute() -> tuple[int, int]:
        torch.get_num_threads()
        loader.set_num_threads(3)
        before, x = count(), torch.ones(1_000_000)
        for _ in range(2):
            assert torch.equal(x + 1, torch.full_like(x, 2))
            computing = count()
            loader.release_team()
            eventually(lambda: count() == before)
        return before, computing

    with ThreadPoolExecutor(1) as pool:  # whose thread ends with its number of threads
        before, computing = pool.submit(compute).result()
    assert computing > before
