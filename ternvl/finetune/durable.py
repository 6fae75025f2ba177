"""Atomic file writes: a file is complete or absent, even if the machine stops while it is being written."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor


def write(path: Path, data: bytes) -> None:
    """Write `data` to a temporary file beside `path`, sync it to disk, then rename it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # other systems cannot open a folder
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON."""
    write(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write `tensors` as a safetensors file."""
    write(path, save(dict(tensors), metadata={"format": "pt"}))


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state for `read_state`: tensors, numbers, strings, and lists and dictionaries of these."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    write(path, buffer.getvalue())


def read_state(path: Path) -> dict[str, Any]:
    """Return a state that `write_state` wrote, with its tensors on the CPU. Code in the file is never run."""
    return torch.load(path, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]
