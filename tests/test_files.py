"""Files that are no files."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from ternvl.files import read_regular


def test_a_regular_file_within_its_limit(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    (tmp_path / "link").symlink_to(file)
    assert read_regular(file) == read_regular(file, limit=5) == read_regular(tmp_path / "link") == b"12345"
    with pytest.raises(OSError, match="more than 4 bytes"):
        read_regular(file, limit=4)
    with pytest.raises(OSError, match="symbolic links"):
        read_regular(tmp_path / "link", follow=False)
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "absent")


def test_nothing_else_is_read_or_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else None
        for path in (tmp_path / "fifo", tmp_path / "socket", tmp_path, Path("/dev/zero")):
            with pytest.raises(OSError, match=r"not a regular file|No such device"):
                read_regular(path)
        if before is not None:
            assert len(os.listdir("/proc/self/fd")) == before, "a file is left open"
