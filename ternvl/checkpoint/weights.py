"""Reading weights from any of the three layouts into an `InternVL`, and writing them in the original layout.

Files are mapped into memory, and a tensor that already has the requested type is used in place, so a model is never
twice in memory. Only safetensors and GGUF files are read, because loading a pickle runs the code in it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from ternvl.checkpoint import config_json, write_config
from ternvl.checkpoint.names import remap
from ternvl.checkpoint.source import read_object
from ternvl.checkpoint.tensor_files import INDEX, SINGLE, listed, opened
from ternvl.config import ModelConfig
from ternvl.errors import CheckpointError, TernvlError
from ternvl.model.internvl import InternVL
from ternvl.types import Progress

_SHARD = "model-{:05}-of-{:05}.safetensors"
_EMBEDDING, _HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
_FLOATS = ("F32", "F16", "BF16")


class _Stored(NamedTuple):
    """A tensor in an open file; `third` is its index if it is one third of a stacked tensor."""

    file: Any
    name: str
    shape: tuple[int, ...]
    third: int | None


def resolve_dtype(dtype: str, config: ModelConfig, device: torch.device) -> torch.dtype:
    """Return the type to compute in, given "bfloat16", "float16", "float32" or "auto".

    "auto" is float32 on a CPU and the checkpoint's own type elsewhere: CPUs without matrix instructions for the short
    types are several times slower in them, and every CPU is less exact. Raises TernvlError for other names.
    """
    if dtype not in ("auto", *config_json.DTYPES):
        raise TernvlError(f"dtype {dtype!r} is unknown; it is one of auto, {', '.join(config_json.DTYPES)}.")
    if dtype == "auto" and device.type == "cpu":
        return torch.float32
    return getattr(torch, config.dtype if dtype == "auto" else dtype)


def load(folder: Path, config: ModelConfig, *, dtype: torch.dtype, progress: Progress | None = None) -> InternVL:
    """Load the model in a folder onto the CPU, in `dtype` and frozen.

    If the configuration ties the output head to the embeddings and the checkpoint has no head, the embeddings are used
    for it. `progress` is called with the bytes read so far and the bytes in all. Raises CheckpointError if files are
    absent or broken, if tensors are missing, unknown or of another shape, or if the tokenizer in the folder has more
    tokens than the embedding.
    """
    _check_vocabulary(folder, config.language.vocab_size)
    with torch.device("meta"):
        model = InternVL(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    with ExitStack() as files:
        parts = _gather(opened(folder, files))
        tied = config.language.tie_word_embeddings and _HEAD not in parts
        if tied:
            del shapes[_HEAD]
        _check(parts, shapes, folder)
        state = _read(parts, dtype, progress)
    if tied:
        state[_HEAD] = state[_EMBEDDING]
    model.load_state_dict(state, assign=True)
    if tied:
        model.language_model.lm_head.weight = model.language_model.model.embed_tokens.weight
    return model.requires_grad_(False).eval()


def _check_vocabulary(folder: Path, vocab_size: int) -> None:
    path = folder / "tokenizer.json"
    if not path.is_file():
        path = folder / "added_tokens.json"  # of a slow tokenizer; the ids of its vocabulary are lower
    if not path.is_file():
        return
    spec = read_object(path).values
    try:
        if path.name == "tokenizer.json":
            highest = max([*spec["model"]["vocab"].values(), *(token["id"] for token in spec["added_tokens"])])
        else:
            highest = max(spec.values())
    except (AttributeError, KeyError, TypeError, ValueError):
        return  # not a byte-pair tokenizer: loading the tokenizer reports it
    if highest >= vocab_size:
        raise CheckpointError(
            f"{path} has token ids up to {highest}, but the model's embedding has {vocab_size} rows: the tokenizer "
            "belongs to another model."
        )


def _gather(files: Iterable[Any]) -> dict[str, list[_Stored]]:
    """The tensors in the files by their name in the original layout: one whole tensor, or its thirds in order."""
    parts: dict[str, list[_Stored]] = {}
    for file in files:
        for name in file.keys():  # noqa: SIM118, the handle is not iterable
            destination = remap(name)
            if destination is None:
                continue
            view = file.get_slice(name)
            if view.get_dtype() not in _FLOATS:
                raise CheckpointError(
                    f"Tensor {name} has type {view.get_dtype()}; only {', '.join(_FLOATS)} are supported."
                )
            stored = _Stored(file, name, tuple(view.get_shape()), destination.third)
            parts.setdefault(destination.name, []).append(stored)
    for stored_parts in parts.values():
        stored_parts.sort(key=lambda part: -1 if part.third is None else part.third)
    return parts


def _check(parts: Mapping[str, Sequence[_Stored]], shapes: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    missing = [name for name in shapes if name not in parts]
    unknown = [stored.name for name, found in parts.items() if name not in shapes for stored in found]
    misshapen = []
    for name, found in parts.items():
        thirds = [stored.third for stored in found]
        if name not in shapes:
            continue
        if thirds not in ([None], [0, 1, 2]):
            missing.append(f"{name} (of which there is only {', '.join(stored.name for stored in found)})")
            continue
        rows, *rest = shapes[name]
        wanted = (rows // len(found), *rest)
        misshapen += [f"{s.name} {list(s.shape)} for {list(wanted)}" for s in found if s.shape != wanted]
    faults = [(missing, "missing"), (unknown, "unknown"), (misshapen, "of another shape")]
    text = "; ".join(f"{len(names)} {fault}: {listed(names)}" for names, fault in faults if names)
    if text:
        raise CheckpointError(f"The tensors in {folder} do not fit its config.json: {text}.")


def _read(parts: Mapping[str, Sequence[_Stored]], dtype: torch.dtype, progress: Progress | None) -> dict[str, Tensor]:
    """Whole tensors in `dtype`. Tensors that already have it stay in the mapped file."""
    total = sum(torch.Size(stored.shape).numel() for found in parts.values() for stored in found) * dtype.itemsize
    done = 0
    state = {}
    for name, found in parts.items():
        tensors = [stored.file.get_tensor(stored.name) for stored in found]
        whole = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        state[name] = whole.to(dtype)
        done += whole.numel() * dtype.itemsize
        if progress is not None:
            progress(done, total)
    return state


def save(model: InternVL, folder: Path, *, dtype: torch.dtype, max_shard_bytes: int = 5_000_000_000) -> None:
    """Write a checkpoint in the original layout: weights, `config.json`, `generation_config.json`.

    The weights go to one file, or to several files and an index if they exceed `max_shard_bytes`. Weights and
    configuration that the folder held before are replaced; the tokenizer is not written. Raises CheckpointError for a
    model whose modules were replaced, such as a quantised one.
    """
    state = model.state_dict()
    with torch.device("meta"):
        plain = InternVL(model.config).state_dict().keys()
    if state.keys() != plain:
        names = sorted(state.keys() ^ plain)
        raise CheckpointError(f"Only a model with plain weights can be saved; this one differs in {listed(names)}.")
    tied = model.language_model.lm_head.weight is model.language_model.model.embed_tokens.weight
    if tied:
        del state[_HEAD]
    folder.mkdir(parents=True, exist_ok=True)
    _save_shards(state, folder, dtype, max_shard_bytes)
    name = str(dtype).removeprefix("torch.")
    _write_json(folder / "config.json", write_config.write(model.config, dtype=name, tied=tied))
    _write_json(folder / "generation_config.json", write_config.write_generation(model.config))


def _save_shards(state: Mapping[str, Tensor], folder: Path, dtype: torch.dtype, max_shard_bytes: int) -> None:
    shards = list(_split(state, dtype.itemsize, max_shard_bytes))
    names = [_SHARD.format(i + 1, len(shards)) for i in range(len(shards))] if len(shards) > 1 else [SINGLE]
    for name, keys in zip(names, shards, strict=True):
        tensors = {key: state[key].to("cpu", dtype).contiguous() for key in keys}
        # The replaced file may be the one that the model is mapped from; it stays on disk until it is unmapped.
        save_file(tensors, folder / f"{name}.part", metadata={"format": "pt"})
        os.replace(folder / f"{name}.part", folder / name)
    for old in {SINGLE, INDEX, *(path.name for path in folder.glob("model-?????-of-?????.safetensors"))} - {*names}:
        (folder / old).unlink(missing_ok=True)
    if len(shards) > 1:
        size = sum(tensor.numel() for tensor in state.values()) * dtype.itemsize
        weight_map = {key: name for name, keys in zip(names, shards, strict=True) for key in keys}
        _write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})


def _split(state: Mapping[str, Tensor], itemsize: int, max_shard_bytes: int) -> Iterator[list[str]]:
    """Names in order, in groups of at most `max_shard_bytes` or of one larger tensor."""
    run: list[str] = []
    size = 0
    for name, tensor in state.items():
        if run and size + tensor.numel() * itemsize > max_shard_bytes:
            yield run
            run, size = [], 0
        run.append(name)
        size += tensor.numel() * itemsize
    yield run


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
