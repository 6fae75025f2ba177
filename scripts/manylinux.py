"""Makes the wheel for Linux on x86-64: the wheel for all platforms, with the kernels compiled into it.

`scripts/build_twice.py` calls it. The libraries lie where `ternvl/kernels/build.py` would put them, under names with
the digest of the sources in the same wheel, so an installed ternvl finds them up to date, and the CPU chooses among
them. They are not linked with an OpenMP library: torch has loaded its own before, and their symbols are resolved there.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

TAG = "py3-none-manylinux_2_28_x86_64"
"""manylinux_2_28 is the tag of torch's own wheels, so wherever torch can be installed, this wheel can."""
MAY_NEED = {"libc.so.6", "libm.so.6", "libgcc_s.so.1", "libstdc++.so.6", "ld-linux-x86-64.so.2"}
NEWEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (7, 0, 0)}
"""The shared libraries and the newest symbols that a library may need, by auditwheel's policy manylinux_2_28."""
_TARGET = "ternvl/kernels/_build/"
_COMPILE = "from ternvl.kernels import build; build.best_isa(); build.build(*build.X86_FLAGS)"
_NEEDED = re.compile(r"\(NEEDED\).*\[(.*)\]")
_VERSION = re.compile(r"Name: ([A-Z]+)_([\d.]+)")


def compiled(tree: Path) -> list[Path]:
    """Compile the kernels of a source tree for every instruction set, and return the libraries.

    One of them is the probe that tells which of the others the CPU can run. Exits with the compiler's message if that
    fails, or if a library needs what manylinux_2_28 does not have.
    """
    with tempfile.TemporaryDirectory() as cache:  # where no library of these sources lies already
        environment = os.environ | {"PYTHONPATH": str(tree), "XDG_CACHE_HOME": cache}
        done = subprocess.run([sys.executable, "-c", _COMPILE], cwd=tree, env=environment, stderr=subprocess.PIPE)
    if done.returncode:
        raise SystemExit(f"the kernels cannot be compiled: {done.stderr.decode().splitlines()[-1]}")
    libraries = sorted((tree / _TARGET).glob("*.so"))
    faults = [f"{path.name} {fault}" for path in libraries for fault in faults_of(path)]
    if faults:
        raise SystemExit("\n".join(faults))
    return libraries


def faults_of(library: Path) -> Iterator[str]:
    """Say what keeps a library from being manylinux_2_28 for x86-64."""
    text = _readelf("--file-header", "--dynamic", "--version-info", library)
    if "X86-64" not in text:
        yield "is not for x86-64"
    for needed in sorted(set(_NEEDED.findall(text)) - MAY_NEED):
        yield f"needs {needed}"
    for name, version in sorted(set(_VERSION.findall(text))):
        if name not in NEWEST or tuple(map(int, version.split("."))) > NEWEST[name]:
            yield f"needs {name}_{version}"


def _readelf(*arguments: str | Path) -> str:
    environment = os.environ | {"LC_ALL": "C"}
    command = ["readelf", "--wide", *map(str, arguments)]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def pack(pure: Path, libraries: Sequence[Path], folder: Path) -> Path:
    """Write the wheel for all platforms again with libraries, as the wheel for Linux on x86-64; return its path."""
    wheel = folder / pure.name.replace("py3-none-any", TAG)
    with zipfile.ZipFile(pure) as old, zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as new:
        infos = old.infolist()
        (record,) = [info for info in infos if info.filename.endswith(".dist-info/RECORD")]
        rows = []
        for info in infos:
            if info is not record:
                rows.append(_add(new, info, _retagged(info.filename, old.read(info))))
        for library in libraries:
            info = zipfile.ZipInfo(_TARGET + library.name, record.date_time)
            info.external_attr = 0o100755 << 16
            rows.append(_add(new, info, library.read_bytes()))
        _add(new, record, "".join([*rows, f"{record.filename},,\n"]).encode())
    return wheel


def _retagged(name: str, content: bytes) -> bytes:
    if not name.endswith(".dist-info/WHEEL"):
        return content
    changed = content.replace(b"Root-Is-Purelib: true", b"Root-Is-Purelib: false")
    return changed.replace(b"Tag: py3-none-any", f"Tag: {TAG}".encode())


def _add(archive: zipfile.ZipFile, info: zipfile.ZipInfo, content: bytes) -> str:
    """Add a file to a wheel, and return its row of RECORD."""
    archive.writestr(info, content, zipfile.ZIP_DEFLATED)
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{info.filename},sha256={digest},{len(content)}\n"
