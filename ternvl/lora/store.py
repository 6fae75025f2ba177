"""The folder of adapters on disk (`--lora-dir`): one folder an adapter, named like it.

What is uploaded is written to a folder of its own, brought to the disk, and becomes visible by one rename of a link:
whenever the process is killed, the old adapter is there or the new one, whole.

    DIR/french -> .ternvl/french-3f2a...     an uploaded adapter; the link is what is renamed
    DIR/inventory/                           one that someone put there
    DIR/.ternvl/incoming-81bc.../            an upload under way, or what a kill left of one
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO

from ternvl.errors import AdapterError, ConfigError
from ternvl.lora.files import CONFIG, WEIGHTS

logger = logging.getLogger("ternvl.server")

_VERSIONS = ".ternvl"
_STALE_SECONDS = 3_600
"""What nothing points to for so long is no upload of another process that is still under way."""


class AdapterStore:
    """A folder of adapters. All methods touch the disk."""

    def __init__(self, root: Path) -> None:
        """Raises ConfigError for what is no folder."""
        self.root = root
        if not root.is_dir():
            raise ConfigError(f"lora_dir is {root}, which is no folder.")

    def folders(self) -> dict[str, Path]:
        """Names, and where their files lie. Folders without an adapter are passed over, with a warning."""
        found = {}
        for path in sorted(self.root.iterdir()):
            if path.name.startswith("."):
                continue
            if (path / CONFIG).is_file() and (path / WEIGHTS).is_file():
                found[path.name] = path.resolve()
            else:
                logger.warning("%s holds no adapter: %s and %s are needed.", path, CONFIG, WEIGHTS)
        return found

    def remove_stale(self) -> None:
        """Remove what uploads left that were cut short, and versions that were replaced."""
        used = {path.resolve() for path in self.root.iterdir() if path.is_symlink()}
        for path in (self.root / _VERSIONS).glob("*"):
            if path.resolve() not in used and time.time() - path.lstat().st_mtime > _STALE_SECONDS:
                _remove(path)

    @contextmanager
    def incoming(self, config: BinaryIO, weights: BinaryIO) -> Iterator[Path]:
        """A folder with the two files, on the disk for good but not yet visible; gone afterwards unless `commit`
        took it."""
        folder = self.root / _VERSIONS / f"incoming-{token_hex(8)}"
        folder.mkdir(parents=True)
        try:
            for name, content in ((CONFIG, config), (WEIGHTS, weights)):
                with (folder / name).open("wb") as file:
                    shutil.copyfileobj(content, file, 1024 * 1024)
                    file.flush()
                    os.fsync(file.fileno())
            _sync(folder)
            yield folder
        finally:
            if folder.exists():
                _remove(folder)

    def check_free(self, name: str) -> None:
        """Raises AdapterError where a folder has the name that was not uploaded: it is not ours to replace."""
        path = self.root / name
        if path.exists() and not path.is_symlink():
            message = f"The adapter {name} lies in a folder that was not uploaded; upload under another name."
            raise AdapterError(message, param="lora_name")

    def commit(self, folder: Path, name: str) -> Path:
        """Make an incoming folder the adapter `name`; returns where it lies now. Raises what `check_free` raises."""
        self.check_free(name)
        version = folder.with_name(f"{name}-{token_hex(8)}")
        folder.rename(version)
        _sync(version.parent)
        link = version.with_name(f"link-{token_hex(8)}")
        link.symlink_to(Path(_VERSIONS) / version.name)
        os.replace(link, self.root / name)
        _sync(self.root)
        return version.resolve()

    def discard(self, folder: Path) -> None:
        """Remove a version that was replaced; another folder stays."""
        if folder.parent == (self.root / _VERSIONS).resolve():
            _remove(folder)


def _sync(folder: Path) -> None:
    """Bring a folder's entries to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
