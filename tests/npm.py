"""Installs what a folder's package-lock.json names, below the folder."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent / "clients" / "node"
"""That of the Node clients."""


def install(folder: Path) -> None:
    """Once for each content of the lock file, also if several processes ask. Skips the test where there is no npm."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed; it brings the Node packages of this test")
    with _alone(folder):
        _install(folder)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with (folder / "package-lock.json").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _install(folder: Path) -> None:
    stamp = folder / "node_modules" / ".ternvl"
    content = hashlib.sha256((folder / "package-lock.json").read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text() == content:
        return
    command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=110)
    assert result.returncode == 0, result.stderr
    stamp.write_text(content)
