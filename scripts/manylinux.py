"""Makes the wheels for Linux on x86-64 and ARM64, and for macOS on ARM64: the one for all platforms, with kernels.

`scripts/build_twice.py` calls it. The libraries lie where `ternvl/kernels/build.py` would put them, under names with
the digest of the sources in the same wheel, so an installed ternvl finds them up to date, and the CPU chooses among
them. They are not linked with an OpenMP library: torch has loaded its own before, and their symbols are resolved there.
Linux on x86-64 cross-compiles those of Linux on ARM64. The wheel for macOS has never been built.
"""

from __future__ import annotations

import base64
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_LINUX = frozenset({"libc.so.6", "libm.so.6", "libgcc_s.so.1", "libstdc++.so.6"})


@dataclass(frozen=True)
class Platform:
    """What a wheel with kernels is for."""

    system: str
    machine: str
    tag: str
    may_need: frozenset[str]
    """The shared libraries that a library of the wheel may need, on Linux by auditwheel's policy manylinux_2_28."""
    shown: str = ""
    """How readelf names the machine."""


# manylinux_2_28 is the tag of torch's own wheels, so wherever torch can be installed, these wheels can.
X86 = Platform(
    "Linux",
    "x86_64",
    "py3-none-manylinux_2_28_x86_64",
    _LINUX | {"ld-linux-x86-64.so.2"},
    "Advanced Micro Devices X86-64",
)
ARM = Platform("Linux", "aarch64", "py3-none-manylinux_2_28_aarch64", _LINUX | {"ld-linux-aarch64.so.1"}, "AArch64")
MACOS = Platform(
    "Darwin",
    "arm64",
    "py3-none-macosx_11_0_arm64",
    frozenset({"/usr/lib/libc++.1.dylib", "/usr/lib/libSystem.B.dylib"}),
)
NEWEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (7, 0, 0)}
"""The newest symbols that a library may need, by the same policy."""
_TARGET = "ternvl/kernels/_build/"
_COMPILE = "from ternvl.kernels import build; build.best_isa(); build.build(*build.FLAGS)"
_CROSS_COMPILE = "import sys; from ternvl.kernels import build; build.build_for(sys.argv[1])"
_CROSS_COMPILER = "aarch64-linux-gnu-g++"
_NEEDED = re.compile(r"\(NEEDED\).*\[(.*)\]")
_VERSION = re.compile(r"Name: ([A-Z]+)_([\d.]+)")


def platforms() -> list[Platform]:
    """Return the platforms for which wheels with kernels can be built here."""
    here = [
        each for each in (X86, ARM, MACOS) if (each.system, each.machine) == (platform.system(), platform.machine())
    ]
    return [*here, ARM] if here == [X86] and shutil.which(_CROSS_COMPILER) else here


def compiled(tree: Path, target: Platform) -> list[Path]:
    """Compile the kernels of a source tree for every instruction set, and return the libraries.

    One of them is the probe that tells which of the others the CPU can run. Exits with the compiler's message if that
    fails, or if a library needs what the platform does not promise.
    """
    is_cross = target.machine != platform.machine()
    code = [_CROSS_COMPILE, target.machine] if is_cross else [_COMPILE]
    with tempfile.TemporaryDirectory() as cache:  # where no library of these sources lies already
        changes = {"PYTHONPATH": str(tree), "XDG_CACHE_HOME": cache, "MACOSX_DEPLOYMENT_TARGET": "11.0"}
        done = subprocess.run([sys.executable, "-c", *code], cwd=tree, env=os.environ | changes, stderr=subprocess.PIPE)
    if done.returncode:
        raise SystemExit(f"the kernels cannot be compiled: {done.stderr.decode().splitlines()[-1]}")
    libraries = sorted((tree / _TARGET / (target.machine if is_cross else "")).glob("*.so"))
    faults = [f"{path.name} {fault}" for path in libraries for fault in faults_of(path, target)]
    if faults:
        raise SystemExit("\n".join(faults))
    return libraries


def faults_of(library: Path, target: Platform) -> Iterator[str]:
    """Say what keeps a library from being what the tag of the platform says."""
    if target is MACOS:
        listed = _output("otool", "-L", library).splitlines()[2:]  # behind two lines with the library's own name
        yield from (f"needs {name}" for name in sorted({line.split()[0] for line in listed} - target.may_need))
        return
    text = _output("readelf", "--wide", "--file-header", "--dynamic", "--version-info", library)
    if target.shown not in text:
        yield f"is not for {target.machine}"
    for needed in sorted(set(_NEEDED.findall(text)) - target.may_need):
        yield f"needs {needed}"
    for name, version in sorted(set(_VERSION.findall(text))):
        if name not in NEWEST or tuple(map(int, version.split("."))) > NEWEST[name]:
            yield f"needs {name}_{version}"


def _output(*command: str | Path) -> str:
    environment = os.environ | {"LC_ALL": "C"}
    return subprocess.run(list(map(str, command)), env=environment, check=True, capture_output=True, text=True).stdout


def pack(pure: Path, libraries: Sequence[Path], folder: Path, target: Platform) -> Path:
    """Write the wheel for all platforms again with libraries, as the wheel for one platform; return its path."""
    wheel = folder / pure.name.replace("py3-none-any", target.tag)
    with zipfile.ZipFile(pure) as old, zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as new:
        infos = old.infolist()
        (record,) = [info for info in infos if info.filename.endswith(".dist-info/RECORD")]
        rows = []
        for info in infos:
            if info is not record:
                rows.append(_add(new, info, _retagged(info.filename, old.read(info), target.tag)))
        for library in libraries:
            info = zipfile.ZipInfo(_TARGET + library.name, record.date_time)
            info.external_attr = 0o100755 << 16
            rows.append(_add(new, info, library.read_bytes()))
        _add(new, record, "".join([*rows, f"{record.filename},,\n"]).encode())
    return wheel


def _retagged(name: str, content: bytes, tag: str) -> bytes:
    if not name.endswith(".dist-info/WHEEL"):
        return content
    changed = content.replace(b"Root-Is-Purelib: true", b"Root-Is-Purelib: false")
    return changed.replace(b"Tag: py3-none-any", f"Tag: {tag}".encode())


def _add(archive: zipfile.ZipFile, info: zipfile.ZipInfo, content: bytes) -> str:
    """Add a file to a wheel, and return its row of RECORD."""
    archive.writestr(info, content, zipfile.ZIP_DEFLATED)
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{info.filename},sha256={digest},{len(content)}\n"
