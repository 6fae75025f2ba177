"""Builds the sdist and the wheels twice, in two folders, and fails unless both builds have the same bytes.

    python scripts/build_twice.py dist           builds twice and compares
    python scripts/build_twice.py dist --once    builds once

It builds what git tracks, with setuptools of this environment and without any network. The wheels are built from the
unpacked sdist, so the sdist is complete. One wheel is for all platforms; others also have the compiled kernels of this
platform and, on Linux with x86-64 and Debian's cross compiler, of Linux on ARM64. Times in the archives are
`SOURCE_DATE_EPOCH`, by default that of the commit.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

import manylinux
from manylinux import Platform

ROOT = Path(__file__).resolve().parents[1]
_BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


def build(source: Path, folder: Path, epoch: int, targets: Sequence[Platform]) -> list[Path]:
    """Build the sdist and the wheels of a source tree into `folder`, and return their paths.

    `targets` are the platforms of the wheels with compiled kernels.
    """
    folder.mkdir(parents=True)
    sdist = normalised(folder / _run(source, "build_sdist", folder, epoch), epoch)
    with tempfile.TemporaryDirectory() as unpacked:
        with tarfile.open(sdist) as archive:
            archive.extractall(unpacked, filter="data")
        (tree,) = Path(unpacked).iterdir()
        wheel = folder / _run(tree, "build_wheel", folder, epoch)
        packed = [manylinux.pack(wheel, manylinux.compiled(tree, target), folder, target) for target in targets]
        return [sdist, wheel, *packed]


def _run(source: Path, hook: str, folder: Path, epoch: int) -> str:
    """Call a hook of the build backend, and return the name of the file that it writes."""
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(epoch), "PYTHONHASHSEED": "0"}
    command = [sys.executable, "-c", _BUILD, hook, str(folder)]
    done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{hook} failed:\n{done.stderr}")
    return done.stdout.splitlines()[-1]


def normalised(sdist: Path, epoch: int) -> Path:
    """Write an sdist again with its files in order, of one time and no owner: setuptools takes them from the disk."""
    with tarfile.open(sdist) as old:
        members = sorted(old.getmembers(), key=lambda member: member.name)
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as new:
            for member in members:
                content = old.extractfile(member) if member.isfile() else None
                member.mtime, member.uid, member.gid, member.uname, member.gname = epoch, 0, 0, "", ""
                member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
                member.pax_headers = {}
                new.addfile(member, content)
    with sdist.open("wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=epoch) as packed:
        packed.write(buffer.getvalue())
    return sdist


def tracked(target: Path) -> Path:
    """Copy the files that git tracks to a new folder, as they are on the disk."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target / name)
    return target


def commit_time() -> int:
    """Return `SOURCE_DATE_EPOCH`, or the time of the last commit."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    shown = (
        given or subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, check=True, capture_output=True).stdout
    )
    return int(shown)


def targets() -> list[Platform]:
    """Return the platforms whose wheels with compiled kernels can be built here, and say which cannot."""
    found = manylinux.platforms()
    for each in (manylinux.X86, manylinux.ARM, manylinux.MACOS):
        if each not in found:
            print(f"the wheel {each.tag} cannot be built on this machine.", file=sys.stderr)
    return found


def differing(builds: list[list[Path]]) -> list[str]:
    """Return the names of files that are not the same, byte for byte, in all builds."""
    same = [len({(path.name, path.read_bytes()) for path in paths}) == 1 for paths in zip(*builds, strict=True)]
    return [path.name for path, is_same in zip(builds[0], same, strict=True) if not is_same]


def main(arguments: list[str] | None = None) -> int:
    """Build twice, compare, and keep one build."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("output", type=Path, help="the folder that the sdist and the wheels are written to")
    parser.add_argument("--once", action="store_true", help="build once and compare nothing")
    chosen = parser.parse_args(arguments)
    epoch, wanted = commit_time(), targets()
    with tempfile.TemporaryDirectory() as name:
        places = [Path(name) / "one", Path(name) / "a second, longer place"][: 1 if chosen.once else 2]
        builds = [build(tracked(place / "tree"), place / "dist", epoch, wanted) for place in places]
        if differ := differing(builds):
            print(f"not reproducible, because two builds differ: {', '.join(differ)}")
            return 1
        chosen.output.mkdir(parents=True, exist_ok=True)
        for path in builds[0]:
            shutil.copyfile(path, chosen.output / path.name)
            print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}  {path.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
