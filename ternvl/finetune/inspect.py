"""Reports which matrices an adapter changes, and by how much."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch

from ternvl.checkpoint import source, weights
from ternvl.kernels.lora import Weights
from ternvl.lora import files
from ternvl.lora.adapter import Adapter


def inspect(folder: Path, model: str | None = None) -> dict[str, Any]:
    """Return a description of the adapter in `folder` as values for JSON; `modules` has one row a kind of module.

    Given `model`, the adapter's base, `relative_mean` is the mean ratio of the norm of the change to the norm of the
    matrix that it is added to. Raises AdapterError if the adapter cannot be read or does not fit the model,
    CheckpointError if the model cannot be read.
    """
    settings = files.read_settings(folder, str(folder))
    found, norms = _read(folder, model)
    kinds: dict[str, list[str]] = {}
    for name in found.modules:
        kinds.setdefault(re.sub(r"\.\d+\.", ".N.", name), []).append(name)
    parts = [part for each in found.modules.values() for part in each]
    return {
        "adapter": str(folder),
        "base": settings.base,
        "rank": settings.rank,
        "alpha": settings.alpha,
        "scale": parts[0].scales[0].item(),
        "num_parameters": sum(part.rank * (part.num_rows + part.num_inputs) for part in parts),
        "num_bytes": (folder / files.WEIGHTS).stat().st_size,
        "modules": [_row(kind, [(found.modules[n], norms.get(n)) for n in names]) for kind, names in kinds.items()],
    }


def _read(folder: Path, model: str | None) -> tuple[Adapter, dict[str, float]]:
    """Return the adapter, and the norm of each matrix that it changes if the model is given."""
    if model is None:
        return files.read(folder, str(folder), None), {}
    model_folder = source.resolve(model)
    config = source.load_config(model_folder)
    found = files.read(folder, str(folder), files.linears(config))
    loaded = weights.load(model_folder, config, dtype=getattr(torch, config.dtype))
    return found, {name: loaded.get_parameter(f"{name}.weight").float().norm().item() for name in found.modules}


def _row(kind: str, members: list[tuple[tuple[Weights, ...], float | None]]) -> dict[str, Any]:
    norms = [math.hypot(*map(_norm, parts)) for parts, _ in members]
    first = members[0][0]
    row = {
        "module": kind,
        "count": len(members),
        "shape": [sum(part.num_rows for part in first), first[0].num_inputs],
        "norm_mean": sum(norms) / len(norms),
        "norm_max": max(norms),
    }
    relative = [norm / base for norm, (_, base) in zip(norms, members, strict=True) if base]
    return row | ({"relative_mean": sum(relative) / len(relative)} if relative else {})


def _norm(part: Weights) -> float:
    """Return the Frobenius norm of BA without computing the product: |BA|^2 = sum of (B'B) * (AA')."""
    a, b = part.matrices()
    square = ((b.T @ b) * (a @ a.T)).sum()
    return math.sqrt(max(0.0, square.item()))
