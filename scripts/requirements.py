"""Locks the packages that serving needs with the hashes of their files: requirements-torch.txt, requirements-serve.txt.

    python scripts/requirements.py            writes both files

It needs the command `uv`, in the path or named by the variable `UV`, and a package index. Versions are those of
`constraints.txt`; packages that only other systems need are not in it and are as new as the index has them. torch
stands alone, because one chooses its build (docs/install.md).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = (ROOT / "requirements-torch.txt", ROOT / "requirements-serve.txt")
_HEAD = """\
# {what}, with the hashes of their files. Written by `python scripts/requirements.py`.
#
#   pip install --require-hashes --requirement {name}
"""
_PIN = re.compile(
    r"^([a-z0-9-]+)==(\S+)(?: ; (.*?))? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE
)


@dataclass(frozen=True)
class Pin:
    """A locked package: its name, its version, for which systems it is, and the SHA-256 of its files."""

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]


def read(path: Path) -> Iterator[Pin]:
    """Yield the packages of a locked file."""
    for name, version, marker, hashes in _PIN.findall(path.read_text(encoding="utf-8")):
        yield Pin(name, version, marker, tuple(re.findall(r"sha256:([0-9a-f]{64})", hashes)))


def dependencies() -> tuple[list[str], list[str]]:
    """Return the requirement of torch, and the other requirements of the package."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    torch = [line for line in listed if re.match(r"torch\b", line)]
    return torch, [line for line in listed if line not in torch]


def locked(requirements: Sequence[str]) -> str:
    """Return pins with hashes of requirements and of all that they bring, as uv resolves them for every system."""
    uv = os.environ.get("UV") or shutil.which("uv")
    if uv is None:
        raise SystemExit("uv is needed; install it into an environment of its own, and name it: UV=/path/to/uv")
    flags = [
        "--universal",
        "--python-version",
        "3.11",
        "--generate-hashes",
        "--no-header",
        "--no-annotate",
        "--no-build",
    ]
    command = [uv, "pip", "compile", "-", "--constraint", "constraints.txt", *flags]
    given = "\n".join(requirements)
    return subprocess.run(command, cwd=ROOT, input=given, check=True, capture_output=True, text=True).stdout


def main(arguments: list[str] | None = None) -> int:
    """Write the files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.parse_args(arguments)
    kinds = ("torch and what it brings", "What ternvl needs beside torch")
    for path, what, requirements in zip(FILES, kinds, dependencies(), strict=True):
        path.write_text(_HEAD.format(what=what, name=path.name) + locked(requirements), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
