"""Compiles the kernels: `python -m ternvl.kernels.build [--quiet]`.

The same sources make one library for each instruction set. The name of a library contains a digest of its sources and
flags, so that the name shows whether it is up to date, and a library of other sources is never loaded by mistake. This
module does not need torch.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path

SOURCES = Path(__file__).parent / "cpu"
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma", "-mf16c")
X86_FLAGS = {
    "portable": (),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "avx512": _AVX512,
    "avx512vnni": (*_AVX512, "-mavx512vnni"),
}
FLAGS = X86_FLAGS if platform.machine().lower() in ("x86_64", "amd64") else {"portable": ()}
"""The flags of each instruction set, the least capable one first."""
# The compiler may not contract a * b + c by itself, so that results are the same on every path through a kernel.
COMMON_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-exceptions", "-fno-rtti")
MORE_FLAGS = ("-fopenmp", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-psabi")


class BuildError(Exception):
    """The kernels could not be compiled. The message is one line."""


def sources() -> list[Path]:
    """Return all files that are compiled. Their `#include` lines name headers relative to `SOURCES`."""
    return sorted(SOURCES.rglob("*.cpp"))


@cache
def digest() -> str:
    """Return a digest of the sources and the flags."""
    content = hashlib.sha256(repr((FLAGS, COMMON_FLAGS, MORE_FLAGS)).encode())
    for path in sorted((*sources(), *SOURCES.rglob("*.h"))):
        content.update(path.relative_to(SOURCES).as_posix().encode() + b"\0" + path.read_bytes())
    return content.hexdigest()[:16]


def folders() -> tuple[Path, Path]:
    """Return the folders of libraries: one beside the sources, and one in the user's cache if that is not writable."""
    cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return SOURCES.parent / "_build", Path(cache_home) / "ternvl" / "kernels"


def find(isa: str) -> Path | None:
    """Return the library of an instruction set, or None if it has not been built from these sources."""
    paths = (folder / f"{isa}-{digest()}.so" for folder in folders())
    return next((path for path in paths if path.is_file()), None)


def build() -> list[str]:
    """Compile the libraries that are not up to date, and return their instruction sets. Raises BuildError."""
    wanted = [isa for isa in FLAGS if find(isa) is None]
    if not wanted:
        return []
    compiler = find_compiler()
    folder = _writable_folder()
    with tempfile.TemporaryDirectory(dir=folder) as scratch, ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = {isa: _start(pool, compiler, isa, Path(scratch)) for isa in wanted}
        for isa, objects in jobs.items():
            library = Path(scratch) / f"{isa}.so"
            # No OpenMP library is linked: torch has loaded one already, so that there is one pool of threads.
            _run([*compiler, "-shared", "-o", str(library), *(job.result() for job in objects)])
            os.replace(library, folder / f"{isa}-{digest()}.so")
    _remove_others(folders()[0])
    return wanted


def _start(pool: ThreadPoolExecutor, compiler: Sequence[str], isa: str, scratch: Path) -> list[Future[str]]:
    return [pool.submit(_compile, compiler, isa, source, scratch) for source in sources()]


def _compile(compiler: Sequence[str], isa: str, source: Path, scratch: Path) -> str:
    target = scratch / "-".join((isa, *source.relative_to(SOURCES).with_suffix(".o").parts))
    flags = (*COMMON_FLAGS, *MORE_FLAGS, *FLAGS[isa], f"-I{SOURCES}")
    _run([*compiler, *flags, "-c", str(source), "-o", str(target)])
    return str(target)


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run: {error}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise BuildError(f"{command[0]} failed: {lines[0] if lines else done.returncode}")


def find_compiler() -> list[str]:
    """Return the command `$CXX`, or the first compiler that is found. Raises BuildError if there is none."""
    if named := os.environ.get("CXX"):
        return shlex.split(named)
    for name in ("g++", "c++", "clang++"):
        if path := shutil.which(name):
            return [path]
    raise BuildError("no C++ compiler was found (g++ or clang++; CXX names another)")


def _writable_folder() -> Path:
    for folder in folders():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    raise BuildError(f"neither of {', '.join(map(str, folders()))} can be written to")


def _remove_others(folder: Path) -> None:
    """Delete the libraries of other sources."""
    for path in folder.glob("*.so"):
        if digest() not in path.name:
            path.unlink(missing_ok=True)


def main(quiet: bool = False) -> None:
    """Build and print the result. A missing compiler is no failure, because torch then computes everything.

    With `quiet` nothing is printed if everything is up to date.
    """
    try:
        built = build()
    except BuildError as error:
        print(f"ternvl: no native kernels: {error}; torch computes instead, slower.", file=sys.stderr)
        return
    if built or not quiet:
        text = f"built for {', '.join(built)}" if built else "up to date"
        print(f"ternvl: native kernels are {text}.", file=sys.stderr)


if __name__ == "__main__":
    main(quiet="--quiet" in sys.argv[1:])
