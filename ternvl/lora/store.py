"""The folder of adapters on disk (`--lora-dir`), with one folder for each adapter under the adapter's name.

An upload is written to a new folder, synchronised to disk, and made visible by renaming one symbolic link. If the
process is killed at any time, either the old adapter or the new one is there, complete.

    DIR/french -> .ternvl/french-3f2a...     an uploaded adapter; the link is what is renamed
    DIR/inventory/                           an adapter that a user placed there
    DIR/.ternvl/incoming-81bc.../            an upload in progress, or the rest of an interrupted one
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from stat import S_ISREG
from typing import BinaryIO

from ternvl.errors import AdapterError, ConfigError
from ternvl.lora.files import CONFIG, WEIGHTS

logger = logging.getLogger("ternvl.server")

_VERSIONS = ".ternvl"
_STALE_SECONDS = 3_600
"""A folder without a link that is older than this is not an upload in progress of another process."""


class AdapterStore:
    """A folder of adapters. All methods access the disk."""

    def __init__(self, root: Path) -> None:
        """Raises ConfigError if `root` is not a folder."""
        self.root = root
        if not root.is_dir():
            raise ConfigError(f"lora_dir is {root}, which is not a folder.")

    def folders(self) -> dict[str, Path]:
        """Return the folders of adapters by name. What holds no adapter is skipped with a warning that names it."""
        found = {}
        for path in self._visible():
            if problem := _problem(path):
                logger.warning("%s holds no adapter and is left out: %s.", path, problem)
            else:
                found[path.name] = path.resolve()
        return found

    def _visible(self) -> list[Path]:
        try:
            return sorted(path for path in self.root.iterdir() if not path.name.startswith("."))
        except OSError as error:
            raise ConfigError(f"lora_dir is {self.root}, which cannot be read: {error.strerror}.") from None

    def remove_stale(self) -> None:
        """Remove the remains of interrupted uploads, and replaced versions."""
        used = {os.path.realpath(path) for path in self._visible() if path.is_symlink()}
        for path in (self.root / _VERSIONS).glob("*"):
            if os.path.realpath(path) not in used and time.time() - path.lstat().st_mtime > _STALE_SECONDS:
                _remove(path)

    @contextmanager
    def incoming(self, config: BinaryIO, weights: BinaryIO) -> Iterator[Path]:
        """Yield a folder with the two files, synchronised to disk but not yet visible.

        It is removed when the context closes unless `commit` was called with it.
        """
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
        """Raise AdapterError if a folder that was not uploaded has the name; such folders are never replaced."""
        path = self.root / name
        if path.exists() and not path.is_symlink():
            message = f"The adapter {name} is in a folder that was not uploaded; upload under another name."
            raise AdapterError(message, param="lora_name")

    def commit(self, folder: Path, name: str) -> Path:
        """Make an incoming folder the adapter `name` and return its new path. Raises AdapterError as `check_free`."""
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
        """Remove a replaced version. Folders that were not uploaded are kept."""
        if folder.parent == (self.root / _VERSIONS).resolve():
            _remove(folder)


def _problem(folder: Path) -> str:
    """Return why a folder cannot be an adapter's, or an empty string."""
    try:
        for name in (CONFIG, WEIGHTS):
            if not S_ISREG((folder / name).stat().st_mode):
                return f"its {name} is not a regular file"
    except FileNotFoundError:
        return f"{CONFIG} and {WEIGHTS} are needed"
    except OSError as error:
        is_loop = error.errno == errno.ELOOP
        return "it is, or holds, a symbolic link that leads to itself" if is_loop else str(error.strerror)
    return ""


def _sync(folder: Path) -> None:
    """Synchronise a folder's entries to disk."""
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
