"""Files that are there whole or not at all, also when the machine stops in the midst of writing."""

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
    """Write beside the file, make it durable, then put it in the file's place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # elsewhere a folder cannot be opened
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: object) -> None:
    """Indented JSON."""
    write(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file."""
    write(path, save(dict(tensors), metadata={"format": "pt"}))


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """What `read_state` reads: tensors, numbers, strings, lists and dictionaries of them."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    write(path, buffer.getvalue())


def read_state(path: Path) -> dict[str, Any]:
    """Values of `write_state`, and of nothing else: no code that a file may hold is run."""
    return torch.load(path, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]
