"""The open files of a checkpoint, whatever their format, with the methods of open safetensors files."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ternvl.checkpoint import awq, gguf_model
from ternvl.checkpoint.source import read_object
from ternvl.errors import CheckpointError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def opened(folder: Path, files: ExitStack) -> list[Any]:
    """Open the files of a checkpoint, which `files` closes.

    Raises CheckpointError if files are absent or broken.
    """
    found = [_open(path, files) for path in _paths(folder)]
    config = folder / "config.json"
    group = awq.read_group(read_object(config)) if config.is_file() else None
    return found if group is None else [awq.AWQWeights(found, group)]


def tensor_names(folder: Path) -> list[str]:
    """Return the names of all tensors of a checkpoint, from the headers of its files.

    Raises CheckpointError if files are absent or broken.
    """
    with ExitStack() as files:
        return [name for file in opened(folder, files) for name in file.keys()]  # noqa: SIM118, no mapping


def listed(names: Iterable[str], most: int = 5) -> str:
    """Return the first names of many in one text."""
    names = list(names)
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _paths(folder: Path) -> list[Path]:
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    index = folder / INDEX
    if not index.is_file():
        return gguf_model.paths(folder)
    names = sorted({str(name) for name in read_object(index).section("weight_map").values.values()})
    if absent := [name for name in names if not (folder / name).is_file()]:
        raise CheckpointError(f"{index} names files that do not exist: {listed(absent)}.")
    return [folder / name for name in names]


def _open(path: Path, files: ExitStack) -> Any:
    if path.suffix == ".gguf":
        return gguf_model.GGUFWeights(path)
    try:
        return files.enter_context(safe_open(path, framework="pt"))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({error}); its download may be incomplete."
        ) from error
