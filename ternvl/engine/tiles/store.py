"""A folder with the features of image tiles, one file for each tile, which several processes may share.

A file is written under another name and renamed, so that it appears complete. Nothing in it is trusted: it must have
the size that is expected before any of it is read, the name that it is looked up by, and the right checksum. It holds
raw numbers, no objects. A file that is not as it should be is removed and counted, and the tile is encoded again.

Layout: 8 bytes that name the format, the 32 bytes of the file's name, the number of bytes of features in 8 bytes
(little endian), the features, and the SHA-256 of all this.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG
from struct import Struct
from typing import NamedTuple

from ternvl.errors import ConfigError
from ternvl.files import open_regular

logger = logging.getLogger(__name__)

_HEAD = Struct("<8s32sQ")
_MAGIC = b"ternvlT1"
_CHECKSUM_BYTES = 32
_NAME = re.compile(r"[0-9a-f]{64}\.tile")
_UNFINISHED = re.compile(r"\.[^/]*\.unfinished")
_ABANDONED_SECONDS = 3600
"""The age at which a file that is not finished belongs to a process that has ended."""
_WRITES_BETWEEN_SCANS = 256
"""After so many files the folder is measured again, because other processes write to it, too."""
_KEPT_SHARE = 0.9
"""The share of the limit that is left when old files are removed, so that this is seldom done."""


class _File(NamedTuple):
    used: float
    num_bytes: int
    path: Path


class TileStore:
    """The tiles of one model in a folder. One thread at a time may use it; other processes may use the same folder."""

    def __init__(self, folder: Path, *, max_bytes: int, tile_bytes: int, identity: bytes) -> None:
        """`max_bytes` limits all files together. `tile_bytes` is the size of a tile's features, and `identity` stands
        for all that they depend on beside the tile. Raises ConfigError as `open_folder` does."""
        self.folder = open_folder(folder)
        self.writes = True
        """False once a file could not be written, as on a full disk."""
        self.num_damaged = 0
        self._max_bytes, self._tile_bytes, self._identity = max_bytes, tile_bytes, identity
        self._file_bytes = _HEAD.size + tile_bytes + _CHECKSUM_BYTES
        self._num_bytes = self._num_writes = 0
        self.shrink()

    def read(self, key: bytes) -> memoryview | None:
        """Return the features of a tile; None if there are none, or if their file is damaged."""
        name = self._name(key)
        path = self._path(name)
        try:
            content = self._content(path, name)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self._discard(path, error)
            return None
        with suppress(OSError):  # a folder that cannot be written to
            os.utime(path)
        return content

    def _content(self, path: Path, name: bytes) -> memoryview:
        """Return the features in a file. Raises OSError if it cannot be read, ValueError if it is not as expected."""
        with open_regular(path, follow=False) as file:
            size = os.fstat(file.fileno()).st_size
            if size != self._file_bytes:
                raise ValueError(f"it has {size} bytes instead of {self._file_bytes}")
            content = memoryview(bytearray(file.read(self._file_bytes)))  # torch warns of bytes that cannot be changed
        if len(content) != self._file_bytes:
            raise ValueError("it ends too early")
        head, checked = content[: _HEAD.size], content[:-_CHECKSUM_BYTES]
        if head != self._head(name):
            raise ValueError("it belongs to another tile or another format")
        if content[-_CHECKSUM_BYTES:] != hashlib.sha256(checked).digest():
            raise ValueError("its checksum is wrong")
        return checked[_HEAD.size :]

    def _discard(self, path: Path, error: Exception) -> None:
        self.num_damaged += 1
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        try:
            path.unlink(missing_ok=True)
            outcome = "it is removed"
        except OSError as refusal:
            outcome = f"it cannot be removed: {refusal.strerror}"
        logger.warning("The image tile %s cannot be used (%s); %s.", path, reason, outcome)

    def write(self, key: bytes, features: memoryview) -> None:
        """Keep the features of a tile. If it fails, as on a full disk, it is logged, and nothing more is written."""
        if not self.writes:
            return
        name = self._name(key)
        try:
            self._write(name, features)
            self._num_bytes += self._file_bytes
            self._num_writes += 1
            if self._num_bytes > self._max_bytes or self._num_writes % _WRITES_BETWEEN_SCANS == 0:
                self.shrink()
        except OSError as error:
            self.writes = False
            text = "No more image tiles are kept in %s until the next start, because it cannot be written to (%s)."
            logger.warning(text, self.folder, error.strerror or error)

    def _write(self, name: bytes, features: memoryview) -> None:
        assert features.nbytes == self._tile_bytes
        head = self._head(name)
        checksum = hashlib.sha256(head)
        checksum.update(features)
        descriptor, unfinished = tempfile.mkstemp(dir=self.folder, prefix=".", suffix=".unfinished")  # mode 0600
        try:
            with open(descriptor, "wb") as file:
                for part in (head, features, checksum.digest()):
                    file.write(part)
            os.replace(unfinished, self._path(name))
        except BaseException:
            with suppress(OSError):
                os.unlink(unfinished)
            raise

    def shrink(self) -> None:
        """Measure the folder and, if it is over its limit, remove the files that were not used for longest."""
        files = sorted(self._files())
        self._num_bytes = sum(file.num_bytes for file in files)
        if self._num_bytes <= self._max_bytes:
            return
        for file in files:
            if self._num_bytes <= self._max_bytes * _KEPT_SHARE:
                return
            with suppress(OSError):
                file.path.unlink(missing_ok=True)
                self._num_bytes -= file.num_bytes

    def _files(self) -> Iterator[_File]:
        """Yield the files of tiles of any model, and remove what processes that ended left unfinished."""
        with suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                with suppress(OSError):  # another process has removed it
                    state = entry.stat(follow_symlinks=False)
                    if not S_ISREG(state.st_mode):
                        continue
                    if _NAME.fullmatch(entry.name):
                        yield _File(state.st_mtime, state.st_size, Path(entry.path))
                    elif _UNFINISHED.fullmatch(entry.name) and time.time() - state.st_mtime > _ABANDONED_SECONDS:
                        os.unlink(entry.path)

    def _name(self, key: bytes) -> bytes:
        return hashlib.sha256(b"ternvl tile" + self._identity + key).digest()

    def _path(self, name: bytes) -> Path:
        return self.folder / f"{name.hex()}.tile"

    def _head(self, name: bytes) -> bytes:
        return _HEAD.pack(_MAGIC, name, self._tile_bytes)


def open_folder(folder: Path) -> Path:
    """Return the folder `tiles` in a folder, made if needed, for this user alone.

    Raises ConfigError if it cannot be made, or if others may read or write it: features show what images show.
    """
    own = folder / "tiles"
    try:
        own.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = own.stat()
        if not own.is_dir():
            raise NotADirectoryError(0, "it is not a folder")
    except OSError as error:
        raise ConfigError(f"image_cache_dir is {folder}, in which no folder can be made ({error.strerror}).") from error
    if hasattr(os, "getuid") and (state.st_uid != os.getuid() or state.st_mode & 0o077):
        rule = "must belong to the user of this process, and to nobody else"
        raise ConfigError(f"image_cache_dir holds {own}, which {rule}: run chmod 700 {own}, or name another folder.")
    return own
