"""A quantised model as one safetensors file. At start nothing is computed: what each token reads is copied into memory
of its own, the rest is mapped.

It belongs to one checkpoint, by the digest of its files, and lies in the user's cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ternvl.config import ModelConfig
from ternvl.errors import CheckpointError, ConfigError
from ternvl.fused.replace import assemble, caches_in_int8
from ternvl.kernels.memory import allocate, make_huge_later
from ternvl.kernels.stage import Stage
from ternvl.kernels.stage_types import After, Format, Norm
from ternvl.model.internvl import InternVL
from ternvl.quant.guard import StageReport, stages, vision_layers

VERSION = 5
"""Of the layout of the file; another one is never read."""
_MOST_AT_ONCE = 2**30
"""Bytes that a system reads in one go."""
_TENSORS = ("panels", "scales", "offsets", "bias", "smoothing", "norm_weight", "norm_bias")
_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int8: "I8", torch.uint8: "U8", torch.int32: "I32"}


def cache_folder() -> Path:
    """Where quantised models lie: `$XDG_CACHE_HOME/ternvl/quantized`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ternvl" / "quantized"


def path_for(folder: Path, scheme: str, samples: str) -> Path:
    """The file of a checkpoint in a scheme; `samples` names what it is calibrated on."""
    key = hashlib.sha256(f"{VERSION}/{digest(folder)}/{scheme}/{samples}".encode()).hexdigest()
    return cache_folder() / f"{scheme}-{key[:32]}.safetensors"


def digest(folder: Path) -> str:
    """Of a checkpoint's weights and configuration. A digest is kept as long as no file's size or time changes."""
    files = sorted(
        path for pattern in ("*.safetensors", "*.index.json", "config.json") for path in folder.glob(pattern)
    )
    states = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    known = cache_folder() / "digests" / hashlib.sha256(json.dumps(states).encode()).hexdigest()[:32]
    if known.is_file() and len(text := known.read_text()) == 64:
        return text
    content = hashlib.sha256()
    for path in files:
        content.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            content.update(hashlib.file_digest(file, "sha256").digest())
    with suppress(OSError):  # it only saves the reading next time
        known.parent.mkdir(parents=True, exist_ok=True)
        _replace(known, content.hexdigest().encode())
    return content.hexdigest()


def check_writable(path: Path) -> None:
    """Raises ConfigError where no file can be made in the folder of `path`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ConfigError(
            f"The cache {path.parent} cannot be written to ({error}); XDG_CACHE_HOME names another place."
        ) from error


def save(model: InternVL, reports: Sequence[StageReport], path: Path) -> None:
    """Write a quantised model, all or nothing. What is read often comes first, then the other panels, where they lie at
    multiples of 64 bytes."""
    described = {name: _description(stage) for name, stage in stages(model)}
    metadata = {
        "stages": json.dumps(described),
        "int8_attention": json.dumps([name for name, layer in vision_layers(model) if layer.attends_in_int8]),
        "int8_cache": json.dumps(caches_in_int8(model)),
        "reports": json.dumps([asdict(report) for report in reports]),
    }
    state = model.state_dict()
    names = sorted(
        state, key=lambda name: (not _is_read_often(name), not name.endswith("panels"), state[name].nbytes % 64 != 0)
    )
    header: dict[str, Any] = {"__metadata__": metadata | {"version": str(VERSION)}}
    end = 0
    for name in names:
        start, end = end, end + state[name].nbytes
        header[name] = {
            "dtype": _DTYPES[state[name].dtype], "shape": list(state[name].shape), "data_offsets": [start, end]
        }  # fmt: skip
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 64)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        try:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in names:
                file.write(state[name].contiguous().flatten().view(torch.uint8).numpy().data)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def load(path: Path, config: ModelConfig, reading: Reading | None = None) -> tuple[InternVL, list[StageReport]]:
    """The model of a file, which may be being read already, and how it was quantised. Raises CheckpointError for a file
    that is not whole."""
    try:
        reading = reading or Reading(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("version") != str(VERSION):
                raise CheckpointError(f"{path} has another version of the format.")
            names = [name for name in file.keys() if not _is_read_often(name)]  # noqa: SIM118, the handle is no mapping
            tensors = {name: file.get_tensor(name) for name in names}
        tensors |= reading.tensors()
        described = json.loads(metadata["stages"])
        made = {name: _stage(name, values, tensors) for name, values in described.items()}
        reports = [StageReport(**report) for report in json.loads(metadata["reports"])]
        attention, cache = (json.loads(metadata[name]) for name in ("int8_attention", "int8_cache"))
        return assemble(config, made, tensors, int8_attention=attention, int8_cache=cache), reports
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, AssertionError) as error:
        raise CheckpointError(f"{path} is not a whole quantised model ({error}).") from error


def _is_read_often(name: str) -> bool:
    """Of a tensor that each token reads: the decoder's matrices."""
    return name.startswith("language_model.") and name.endswith(".panels")


class Reading:
    """What is read often, on its way from a file into memory that becomes huge pages: from there it is read up to a
    fifth faster, and files are not mapped with such. Threads read beside whatever else is done."""

    def __init__(self, path: Path) -> None:
        """Raises OSError, SafetensorError, ValueError for a file that is not there or not whole."""
        with safe_open(path, framework="pt"):  # checks that what is read below is a header, and of this file
            pass
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(start - 8))
        self._entries = {name: entry for name, entry in header.items() if _is_read_often(name)}
        size = max(entry["data_offsets"][1] for entry in self._entries.values())  # they are the file's first
        self._memory = allocate(size)
        # Few and large parts: between two of them a thread waits for whatever Python does meanwhile.
        parts = self._memory.split(min(_MOST_AT_ONCE, -(-size // torch.get_num_threads())))
        pool = ThreadPoolExecutor(len(parts), "reading")
        self._parts = [pool.submit(_read, path, start, part) for part in parts]
        pool.shutdown(wait=False)

    def tensors(self) -> dict[str, Tensor]:
        """By name, once they are read. Raises OSError where the file ends within one."""
        for part in self._parts:
            part.result()
        make_huge_later(self._memory)
        types = {name: dtype for dtype, name in _DTYPES.items()}
        found: dict[str, Tensor] = {}
        for name, entry in self._entries.items():
            first, last = entry["data_offsets"]
            found[name] = self._memory[first:last].view(types[entry["dtype"]]).view(entry["shape"])
        return found


def _read(path: Path, start: int, part: Tensor) -> None:
    """Fill a part of memory that begins with the file's byte `start`. Raises OSError where the file ends before."""
    offset = start + int(part.storage_offset())
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        if file.readinto(part.numpy().data) != len(part):
            raise OSError(f"it ends within {len(part)} bytes from {offset} on")


def _description(stage: Stage) -> list[Any]:
    return [stage.out_features, stage.in_features, stage.format, stage.after, stage.eps]


def _stage(name: str, values: list[Any], tensors: dict[str, Tensor]) -> Stage:
    """Takes the stage's tensors out of `tensors`."""
    n, k, format, after, eps = values
    own = {each: tensors.pop(f"{name}.{each}", None) for each in _TENSORS}
    panels, weight, bias = own.pop("panels"), own.pop("norm_weight"), own.pop("norm_bias")
    if panels is None:
        raise ValueError(f"{name}.panels is not there")
    norm = None if weight is None else Norm(weight, bias, eps)
    return Stage((n, k), Format(format), After(after), panels, norm=norm, **own)


def _replace(path: Path, content: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    os.replace(file.name, path)
