"""The files that a lock names, and their states. Nothing is cached: a lock is only worth what is really read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ternvl.checkpoint.source import FILES
from ternvl.embedded import adapter_folder
from ternvl.errors import LockError
from ternvl.lora.files import CONFIG, WEIGHTS
from ternvl.types import FileState


def model_files(folder: Path) -> dict[str, Path]:
    """Return the files of a checkpoint that may change answers: configurations, tokenizer and weights, by name."""
    return {path.name: path for pattern in FILES for path in sorted(folder.glob(pattern)) if path.is_file()}


def adapter_files(folder: Path) -> dict[str, Path]:
    """Return the files of an adapter by name. `folder` may be the name of an embedded adapter."""
    return {name: adapter_folder(folder) / name for name in (CONFIG, WEIGHTS)}


def states(files: Mapping[str, Path]) -> dict[str, FileState]:
    """Read files in parallel, and return their states sorted by name. Raises LockError for one that cannot be read.

    hashlib releases the interpreter lock, so as many files are read at a time as there are processors.
    """
    largest_first = sorted(files, key=lambda name: -files[name].stat().st_size if files[name].is_file() else 0)
    with ThreadPoolExecutor(os.cpu_count(), "hashing") as pool:
        found = dict(zip(largest_first, pool.map(lambda name: _state(files[name]), largest_first), strict=True))
    return dict(sorted(found.items()))


def _state(path: Path) -> FileState:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return FileState(file.tell(), digest)
    except OSError as error:
        raise LockError(f"{path} cannot be read: {error.strerror or error}.") from error
