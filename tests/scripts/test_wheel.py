"""The wheel with compiled kernels: what is in it, and that its tag is true."""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from ternvl.kernels import build

ROOT = Path(__file__).resolve().parents[2]
EPOCH = (2023, 11, 14, 22, 13, 20)
COMPILER = shutil.which("g++") and shutil.which("readelf")
needs_compiler = pytest.mark.skipif(build.FLAGS is not build.X86_FLAGS or not COMPILER, reason="needs x86-64 and g++")


@pytest.fixture(scope="module")
def manylinux() -> Iterator[ModuleType]:
    sys.path.insert(0, str(ROOT / "scripts"))
    yield importlib.import_module("manylinux")
    sys.path.remove(str(ROOT / "scripts"))


@pytest.fixture
def pure(tmp_path: Path) -> Path:
    """A small wheel for all platforms."""
    path = tmp_path / "little-1.0-py3-none-any.whl"
    files = {
        "ternvl/kernels/build.py": "",
        "little-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: little\nVersion: 1.0\n",
        "little-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n\n",
        "little-1.0.dist-info/RECORD": "old",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, EPOCH), content)
    return path


def test_pip_installs_the_wheel_and_its_libraries(manylinux: ModuleType, pure: Path, tmp_path: Path) -> None:
    libraries = [tmp_path / "avx2-0123.so", tmp_path / "isa-0123.so"]
    for path in libraries:
        path.write_bytes(path.name.encode())
    wheels = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        wheels.append(manylinux.pack(pure, libraries, folder, manylinux.X86))
    assert wheels[0].name == "little-1.0-py3-none-manylinux_2_28_x86_64.whl"
    assert wheels[0].read_bytes() == wheels[1].read_bytes()
    with zipfile.ZipFile(wheels[0]) as archive:
        assert {info.date_time for info in archive.infolist()} == {EPOCH}
        about = archive.read("little-1.0.dist-info/WHEEL").decode().splitlines()
        rows = list(csv.reader(archive.read("little-1.0.dist-info/RECORD").decode().splitlines()))
        assert [row[0] for row in rows] == archive.namelist()
        for name, digest, size in rows[:-1]:
            content = archive.read(name)
            expected = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode()
            assert (digest + "=", int(size)) == ("sha256=" + expected, len(content))
    assert about == ["Wheel-Version: 1.0", "Root-Is-Purelib: false", "Tag: py3-none-manylinux_2_28_x86_64", ""]
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(target)]
    platform = ["--platform", "manylinux_2_28_x86_64", "--only-binary", ":all:"]
    subprocess.run([*pip, *platform, str(wheels[0])], check=True, capture_output=True)
    for path in libraries:
        assert (target / "ternvl/kernels/_build" / path.name).read_bytes() == path.read_bytes()


def compile_library(folder: Path, code: str, *flags: str) -> Path:
    source, target = folder / "x.cpp", folder / "x.so"
    source.write_text(code)
    subprocess.run(["g++", "-shared", "-fPIC", *flags, str(source), "-o", str(target)], check=True)
    return target


@needs_compiler
def test_the_kernels_are_manylinux(manylinux: ModuleType) -> None:
    build.best_isa()
    libraries = [path for isa in (*build.FLAGS, "isa") if (path := build.find(isa))]
    assert libraries
    found = {path.name: [*manylinux.faults_of(path, manylinux.X86)] for path in libraries}
    assert found == {path.name: [] for path in libraries}
    assert "is not for aarch64" in [*manylinux.faults_of(libraries[0], manylinux.ARM)]


@pytest.mark.timeout(900)  # a busy machine compiles for minutes, if the tests of the kernels have not yet
@pytest.mark.skipif(not shutil.which(build.CROSS_COMPILERS["aarch64"]), reason="needs g++-aarch64-linux-gnu")
def test_the_kernels_for_arm_are_manylinux(manylinux: ModuleType, pure: Path, tmp_path: Path) -> None:
    libraries = build.build_for("aarch64")
    assert [path.name.partition("-")[0] for path in libraries] == ["neon", "dotprod", "i8mm", "isa"]
    found = {path.name: [*manylinux.faults_of(path, manylinux.ARM)] for path in libraries}
    assert found == {path.name: [] for path in libraries}
    with zipfile.ZipFile(manylinux.pack(pure, libraries, tmp_path, manylinux.ARM)) as archive:
        assert {f"ternvl/kernels/_build/{path.name}" for path in libraries} < set(archive.namelist())


@needs_compiler
def test_a_library_with_an_openmp_of_its_own_is_refused(manylinux: ModuleType, tmp_path: Path) -> None:
    code = 'extern "C" int omp_get_thread_num(); int f() { return omp_get_thread_num(); }'
    library = compile_library(tmp_path, code, "-fopenmp", "-Wl,--no-as-needed", "-lgomp")
    assert "needs libgomp.so.1" in [*manylinux.faults_of(library, manylinux.X86)]


@needs_compiler
def test_a_library_for_a_newer_system_is_refused(manylinux: ModuleType, tmp_path: Path) -> None:
    version = (os.confstr("CS_GNU_LIBC_VERSION") or "").removeprefix("glibc ")
    if tuple(map(int, version.split("."))) < (2, 34):
        pytest.skip("this system's C library is older than 2.34, where pthread_join got a new version")
    code = "#include <pthread.h>\nint f(pthread_t thread) { return pthread_join(thread, nullptr); }"
    assert [*manylinux.faults_of(compile_library(tmp_path, code), manylinux.X86)] == ["needs GLIBC_2.34"]


def test_a_compiler_that_fails_is_named(manylinux: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left_out = shutil.ignore_patterns("_build", "embedded", "__pycache__")
    shutil.copytree(ROOT / "ternvl", tmp_path / "ternvl", ignore=left_out)
    monkeypatch.setenv("CXX", "/no/such/c++")
    with pytest.raises(SystemExit, match=r"the kernels cannot be compiled: .*/no/such/c\+\+ cannot be run"):
        manylinux.compiled(tmp_path, manylinux.X86)
