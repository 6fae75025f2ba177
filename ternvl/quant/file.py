"""A quantised model in one safetensors file in the user's cache.

The file belongs to one checkpoint, which is identified by the digest of its files. Loading computes nothing: tensors
that each token reads are copied into memory, and the others are mapped.
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

VERSION = 6
"""The version of the file's layout. Files of other versions are not read."""
_MOST_AT_ONCE = 2**30
"""The most bytes that one system call reads."""
_TENSORS = ("panels", "scales", "offsets", "bias", "smoothing", "norm_weight", "norm_bias")
_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int8: "I8", torch.uint8: "U8", torch.int32: "I32"}


def cache_folder() -> Path:
    """Return the folder of quantised models: `$XDG_CACHE_HOME/ternvl/quantized`, by default in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ternvl" / "quantized"


def path_for(folder: Path, scheme: str, samples: str) -> Path:
    """Return the path for a checkpoint in a scheme; `samples` is the digest of its calibration samples."""
    key = hashlib.sha256(f"{VERSION}/{digest(folder)}/{scheme}/{samples}".encode()).hexdigest()
    return cache_folder() / f"{scheme}-{key[:32]}.safetensors"


def digest(folder: Path) -> str:
    """Return the digest of a checkpoint's weights and configuration.

    It is cached, and computed again when the size or modification time of a file changes.
    """
    files = sorted(
        path for pattern in ("*.safetensors", "*.index.json", "config.json", "*.gguf") for path in folder.glob(pattern)
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
    with suppress(OSError):  # without the cached digest, the next start reads the files again
        known.parent.mkdir(parents=True, exist_ok=True)
        _replace(known, content.hexdigest().encode())
    return content.hexdigest()


def check_writable(path: Path) -> None:
    """Raise ConfigError if no file can be created in the folder of `path`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ConfigError(
            f"The cache {path.parent} cannot be written to ({error}); set XDG_CACHE_HOME to use another folder."
        ) from error


def save(model: InternVL, reports: Sequence[StageReport], path: Path) -> None:
    """Write a quantised model to `path` atomically.

    The tensors that each token reads come first, then the other panels, which start at multiples of 64 bytes.
    """
    described = {name: _description(stage) for name, stage in stages(model)}
    metadata = {
        "stages": json.dumps(described),
        "int8_attention": json.dumps([name for name, layer in vision_layers(model) if layer.attends_in_int8]),
        "int8_cache": json.dumps(caches_in_int8(model)),
        "embedding_format": json.dumps(getattr(model.language_model.model.embed_tokens, "format", None)),
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
    """Load the model in a file and the reports of its quantisation.

    `reading` is a read of the file that has already started. Raises CheckpointError for an incomplete or invalid file.
    """
    try:
        reading = reading or Reading(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("version") != str(VERSION):
                raise CheckpointError(f"{path} has another version of the file format.")
            names = [name for name in file.keys() if not _is_read_often(name)]  # noqa: SIM118, the handle is no mapping
            tensors = {name: file.get_tensor(name) for name in names}
        tensors |= reading.tensors()
        described = json.loads(metadata["stages"])
        made = {name: _stage(name, values, tensors) for name, values in described.items()}
        reports = [StageReport(**report) for report in json.loads(metadata["reports"])]
        attention, cache = (json.loads(metadata[name]) for name in ("int8_attention", "int8_cache"))
        embedding = json.loads(metadata.get("embedding_format", "null"))
        model = assemble(
            *(config, made, tensors), int8_attention=attention, int8_cache=cache, embedding_format=embedding
        )
        return model, reports
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, AssertionError) as error:
        raise CheckpointError(f"{path} is not a whole quantised model ({error}).") from error


def _is_read_often(name: str) -> bool:
    """Whether each token reads this tensor, which is true for the decoder's matrices."""
    return name.startswith("language_model.") and name.endswith(".panels")


class Reading:
    """A read, in background threads, of the tensors that each token needs.

    They are read into memory that becomes huge pages, from which kernels read up to a fifth faster than from a mapped
    file.
    """

    def __init__(self, path: Path) -> None:
        """Start reading. Raises OSError, SafetensorError or ValueError for a missing or incomplete file."""
        with safe_open(path, framework="pt"):  # checks the header, which is read again below, against the file
            pass
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(start - 8))
        self._entries = {name: entry for name, entry in header.items() if _is_read_often(name)}
        # These tensors are at the start of the file.
        size = max(entry["data_offsets"][1] for entry in self._entries.values())
        self._memory = allocate(size)
        # Few, large parts: between two parts a thread has to wait for the interpreter lock.
        parts = self._memory.split(min(_MOST_AT_ONCE, -(-size // torch.get_num_threads())))
        pool = ThreadPoolExecutor(len(parts), "reading")
        self._parts = [pool.submit(_read, path, start, part) for part in parts]
        pool.shutdown(wait=False)

    def tensors(self) -> dict[str, Tensor]:
        """Wait for the read and return the tensors by name. Raises OSError if the file ends within a tensor."""
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
    """Fill a part of the memory, which starts at byte `start` of the file. Raises OSError if the file is too short."""
    offset = start + int(part.storage_offset())
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        if file.readinto(part.numpy().data) != len(part):
            raise OSError(f"the file ends within the {len(part)} bytes from offset {offset}")


def _description(stage: Stage) -> list[Any]:
    return [stage.out_features, stage.in_features, stage.format, stage.after, stage.eps, stage.mixed]


def _stage(name: str, values: list[Any], tensors: dict[str, Tensor]) -> Stage:
    """Build a stage, and remove its tensors from `tensors`."""
    n, k, format, after, eps, mixed = values
    own = {each: tensors.pop(f"{name}.{each}", None) for each in _TENSORS}
    panels, weight, bias = own.pop("panels"), own.pop("norm_weight"), own.pop("norm_bias")
    if panels is None:
        raise ValueError(f"{name}.panels is missing")
    norm = None if weight is None else Norm(weight, bias, eps)
    return Stage((n, k), Format(format), After(after), panels, norm=norm, mixed=mixed, **own)


def _replace(path: Path, content: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    os.replace(file.name, path)
