"""Reads files whose names come from a user, or that others may replace while the server runs."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO

# A FIFO without a writer would block `open` for good, and a terminal would become that of the process.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)


def open_regular(path: Path, *, follow: bool = True) -> BinaryIO:
    """Open a regular file for reading. A FIFO, a socket or a device is refused and never waited for.

    Raises OSError for anything else than a regular file and, unless it may `follow` it, for a symbolic link. Its
    `strerror` is the reason in words.
    """
    descriptor = os.open(path, _FLAGS if follow else _FLAGS | getattr(os, "O_NOFOLLOW", 0))
    if not S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file")
    return open(descriptor, "rb")


def read_regular(path: Path, *, limit: int | None = None, follow: bool = True) -> bytes:
    """Return the bytes of a regular file.

    Raises what `open_regular` raises, and OSError for a file of more than `limit` bytes.
    """
    with open_regular(path, follow=follow) as file:
        data = file.read() if limit is None else file.read(limit + 1)
    if limit is not None and len(data) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit} bytes")
    return data
