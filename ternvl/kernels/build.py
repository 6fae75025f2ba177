"""Compiles the kernels: `python -m ternvl.kernels.build [--here | --all | --target aarch64] [--quiet]`.

There is one library for each instruction set. By default only the one that this CPU uses is compiled; `--here` compiles
every one that it has, for tests, and `--all` those of other CPUs, too, for wheels. `--target aarch64` cross-compiles
all those of Linux on ARM64 into a folder of their own. A library's name holds a digest of all that it is made from, so
a library of other sources is never loaded by mistake. No torch is needed here.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from math import ceil
from pathlib import Path
from typing import cast

try:
    import fcntl
except ImportError:  # Windows: two processes may compile the same library, and the later one replaces the earlier
    fcntl = None  # type: ignore[assignment]

VARIABLE = "TERNVL_KERNELS"
SOURCES = Path(__file__).parent / "cpu"
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma", "-mf16c")
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
X86_FLAGS: dict[str, tuple[str, ...]] = {
    "portable": (),
    "avx2": _AVX2,
    "avxvnni": (*_AVX2, "-mavxvnni"),
    "avx512": _AVX512,
    "avx512vnni": (*_AVX512, "-mavx512vnni"),
}
ARM_FLAGS: dict[str, tuple[str, ...]] = {
    "neon": ("-march=armv8-a",),
    "dotprod": ("-march=armv8.2-a+dotprod",),
    "i8mm": ("-march=armv8.2-a+dotprod+i8mm",),
}
_FLAGS_OF = {"x86_64": X86_FLAGS, "amd64": X86_FLAGS, "aarch64": ARM_FLAGS, "arm64": ARM_FLAGS}
FLAGS = _FLAGS_OF.get(platform.machine().lower(), {"portable": ()})
"""The flags of each instruction set of this machine, the slowest one first. A CPU with AVX-512 need not have AVX-VNNI.
"""
CROSS_COMPILERS = {"aarch64": "aarch64-linux-gnu-g++"}
"""The kinds of machine that `build_for` can compile for, and Debian's compilers for them."""
# The compiler may not contract a * b + c by itself, so that results are the same on every path through a kernel.
COMMON_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-exceptions", "-fno-rtti")
_IS_MACOS = sys.platform == "darwin"
# Apple's clang++ compiles OpenMP, but has neither the flag of its own for that, nor the library and its header.
_OPENMP = ("-Xclang", "-fopenmp") if _IS_MACOS else ("-fopenmp",)
MORE_FLAGS = (*_OPENMP, "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-psabi")
# macOS refuses symbols that no library has at the time of linking, unless it is told to look for them when it loads.
_LINK_FLAGS = ("-dynamiclib", "-undefined", "dynamic_lookup") if _IS_MACOS else ("-shared",)
_PROBE = "isa"
"""The name of a small library that only says which instruction sets the CPU has."""
_SECONDS_PER_SET = 30
"""The processor time that compiling one instruction set takes, roughly."""

_building = threading.Lock()
_running: set[subprocess.Popen[bytes]] = set()
_scratches: set[Path] = set()
_is_stopped = False


class BuildError(Exception):
    """The kernels could not be compiled. The message is one line."""


def sources() -> list[Path]:
    """Return all files that are compiled. Their `#include` lines name headers relative to `SOURCES`."""
    return sorted(SOURCES.rglob("*.cpp"))


@cache
def digest() -> str:
    """Return the digest of the sources and the flags."""
    content = hashlib.sha256(repr((X86_FLAGS, ARM_FLAGS, COMMON_FLAGS, MORE_FLAGS)).encode())
    for path in sorted((*sources(), *SOURCES.rglob("*.h"))):
        content.update(path.relative_to(SOURCES).as_posix().encode() + b"\0" + path.read_bytes())
    return content.hexdigest()[:16]


def folders() -> tuple[Path, Path]:
    """Return where libraries lie: beside the sources, or in the user's cache where that is not writable."""
    cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return SOURCES.parent / "_build", Path(cache_home) / "ternvl" / "kernels"


def find(isa: str) -> Path | None:
    """Return the library of an instruction set, if it is built from these sources."""
    paths = (folder / f"{isa}-{digest()}.so" for folder in folders())
    return next((path for path in paths if path.is_file()), None)


def isas_here() -> list[str]:
    """Return the instruction sets that this CPU and its operating system support, the slowest one first.

    A library of one small file asks the CPU; it is compiled first if it is not there, in a fraction of a second. Raises
    BuildError.
    """
    if find(_PROBE) is None:
        with _alone() as folder:
            if find(_PROBE) is None:
                _make([_PROBE], find_compiler(), folder)
    path = find(_PROBE)
    try:
        function = ctypes.CDLL(str(path)).ternvl_has_isa
    except (OSError, AttributeError) as error:
        raise BuildError(f"{path} cannot be loaded: {error}") from error
    function.argtypes, function.restype = (ctypes.c_char_p,), ctypes.c_bool
    return [isa for isa in FLAGS if function(isa.encode())]


def best_isa() -> str:
    """Return the fastest of `isas_here`. Raises BuildError."""
    return isas_here()[-1]


def build(*isas: str) -> list[str]:
    """Compile the libraries of these instruction sets that are not up to date, and return the names of those.

    Without arguments it is the instruction set that this CPU uses. Before a compilation, one line on standard error
    says what is compiled. Processes and threads that need the same library wait for the one that compiles it. Raises
    BuildError.
    """
    wanted = isas or (best_isa(),)
    if all(map(find, wanted)):
        return []
    compiler = find_compiler()
    with _alone() as folder:
        missing = [isa for isa in wanted if find(isa) is None]
        if missing:
            _say(_plan(missing))
            _make(missing, compiler, folder)
            _remove_others(folders()[0])
    return missing


def build_for(machine: str) -> list[Path]:
    """Cross-compile all libraries of another kind of machine that are not up to date, and return the paths of all.

    One of them is the probe that tells which of the others a CPU can run. `machine` is a key of `CROSS_COMPILERS`,
    whose compiler is used unless `$CXX` names another. Raises BuildError.
    """
    compiler = shlex.split(os.environ.get("CXX", "")) or [CROSS_COMPILERS[machine]]
    names = (*_FLAGS_OF[machine], _PROBE)
    with _alone() as writable:
        folder = writable / machine
        folder.mkdir(exist_ok=True)
        paths = {isa: folder / f"{isa}-{digest()}.so" for isa in names}
        missing = [isa for isa, path in paths.items() if not path.is_file()]
        if missing:
            _say(_plan(missing))
            _make(missing, compiler, folder)
            _remove_others(folder)
    return list(paths.values())


def start() -> None:
    """Begin to compile what this process will need, on a thread of its own, unless it is up to date.

    A later `build` waits for it, and meets the same error if there is one. So the caller can import torch meanwhile.
    """
    choice = os.environ.get(VARIABLE, "auto")
    if choice == "auto" or choice in FLAGS:
        isas = () if choice == "auto" else (choice,)
        threading.Thread(target=_try_to_build, args=isas, name="ternvl-build", daemon=True).start()


def stop() -> None:
    """End all compilers that this process has started, and remove their unfinished files. Later builds fail."""
    global _is_stopped
    _is_stopped = True
    for process in tuple(_running):
        process.kill()
    for scratch in tuple(_scratches):
        shutil.rmtree(scratch, ignore_errors=True)


def _try_to_build(*isas: str) -> None:
    with suppress(BuildError, OSError):  # the loader meets it again, and reports it
        build(*isas)


@contextmanager
def _alone() -> Iterator[Path]:
    """Keep other threads and processes from building, and yield the folder to write to. Raises BuildError."""
    folder = _writable_folder()
    with _building, (folder / "lock").open("w") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                _say("waiting for another process, which is compiling the CPU kernels.")
                fcntl.flock(file, fcntl.LOCK_EX)
        yield folder


def _plan(isas: Sequence[str]) -> str:
    seconds = ceil(len(isas) * _SECONDS_PER_SET / _num_processors() / 5) * 5
    return f"compiling the CPU kernels for {', '.join(isas)}, once; this takes about {seconds} s on an idle machine."


def _num_processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _make(isas: Sequence[str], compiler: Sequence[str], folder: Path) -> None:
    """Compile libraries and put them into `folder`."""
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as name:
        scratch = Path(name)
        _scratches.add(scratch)
        try:
            commands = [_compilation(compiler, isa, source, scratch) for isa in isas for source in _sources_of(isa)]
            _run_all(commands, scratch)
            # Not linked with an OpenMP library: the symbols are those of torch's, so that there is one thread pool.
            _run_all([_link(compiler, isa, scratch) for isa in isas], scratch)
            for isa in isas:
                os.replace(scratch / f"{isa}.so", folder / f"{isa}-{digest()}.so")
        finally:
            _scratches.discard(scratch)


def _sources_of(isa: str) -> list[Path]:
    """Return the sources of a library, the largest first, which makes the last compilations end together."""
    if isa == _PROBE:
        return [SOURCES / "isa.cpp"]
    return sorted(sources(), key=lambda path: -path.stat().st_size)


def _object(isa: str, source: Path, scratch: Path) -> str:
    return str(scratch / "-".join((isa, *source.relative_to(SOURCES).with_suffix(".o").parts)))


def _compilation(compiler: Sequence[str], isa: str, source: Path, scratch: Path) -> list[str]:
    flags = (*COMMON_FLAGS, *MORE_FLAGS, *(X86_FLAGS | ARM_FLAGS).get(isa, ()), f"-I{SOURCES}")
    return [*compiler, *flags, "-c", str(source), "-o", _object(isa, source, scratch)]


def _link(compiler: Sequence[str], isa: str, scratch: Path) -> list[str]:
    objects = [_object(isa, source, scratch) for source in _sources_of(isa)]
    return [*compiler, *_LINK_FLAGS, "-o", str(scratch / f"{isa}.so"), *objects]


def _run_all(commands: Sequence[Sequence[str]], scratch: Path) -> None:
    """Run commands, as many at a time as there are processors. Raises BuildError for the first one that fails."""
    waiting, running = list(reversed(commands)), dict[subprocess.Popen[bytes], Path]()
    try:
        while waiting or running:
            while waiting and len(running) < _num_processors():
                errors = scratch / f"{len(waiting)}.txt"
                running[_launch(waiting.pop(), errors)] = errors
            time.sleep(0.01)
            for process in [each for each in running if each.poll() is not None]:
                _check(process, running.pop(process))
    finally:
        for process in running:
            process.kill()
            _running.discard(process)


def _launch(command: Sequence[str], errors: Path) -> subprocess.Popen[bytes]:
    if _is_stopped:
        raise BuildError("the process is ending")
    try:
        with errors.open("wb") as file:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=file)
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run: {error}") from error
    _running.add(process)
    return process


def _check(process: subprocess.Popen[bytes], errors: Path) -> None:
    _running.discard(process)
    if process.returncode:
        said = errors.read_text(errors="replace").splitlines()
        lines = [line for line in said if "error" in line] or said
        program = str(cast(Sequence[str], process.args)[0])
        raise BuildError(f"{program} failed: {lines[0] if lines else process.returncode}")


def find_compiler() -> list[str]:
    """Return `$CXX`, or the first compiler that is there. Raises BuildError if there is none."""
    if named := os.environ.get("CXX"):
        return shlex.split(named)
    for name in ("clang++",) if _IS_MACOS else ("g++", "c++", "clang++"):
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
    """Remove the libraries of older sources."""
    for path in folder.glob("*.so"):
        if digest() not in path.name:
            path.unlink(missing_ok=True)


def _say(text: str) -> None:
    print(f"ternvl: {text}", file=sys.stderr, flush=True)


def main(isas: Sequence[str] = (), quiet: bool = False) -> None:
    """Build, and print what was built. Without a compiler torch computes everything, so that is no failure.

    `quiet` prints nothing if everything is up to date.
    """
    began = time.monotonic()
    try:
        built = build(*isas)
    except BuildError as error:
        _say(f"no native kernels: {error}; torch computes instead, slower.")
        return
    if built or not quiet:
        text = f"built for {', '.join(built)} in {time.monotonic() - began:.0f} s" if built else "up to date"
        _say(f"native kernels are {text}.")


def _wanted(args: Sequence[str]) -> Sequence[str]:
    if "--all" in args:
        return tuple(FLAGS)
    with suppress(BuildError):  # the build meets it again, and reports it
        return isas_here() if "--here" in args else ()
    return ()


def cross(machine: str) -> None:
    """Cross-compile, and print the paths of the libraries. Exits with one line if that is not possible."""
    if machine not in CROSS_COMPILERS:
        raise SystemExit(f"ternvl: --target is {machine!r}; it is one of {', '.join(CROSS_COMPILERS)}.")
    try:
        print("\n".join(map(str, build_for(machine))))
    except BuildError as error:
        raise SystemExit(f"ternvl: the kernels cannot be compiled for {machine}: {error}") from error


atexit.register(stop)

if __name__ == "__main__":
    if "--target" in sys.argv[1:]:
        cross("".join(sys.argv[sys.argv.index("--target") + 1 :][:1]))
    else:
        main(_wanted(sys.argv[1:]), quiet="--quiet" in sys.argv[1:])
