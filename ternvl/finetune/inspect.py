"""What an adapter changes, and how much."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from ternvl.finetune import lora_file
from ternvl.finetune.lora_file import AdapterFile, Change
from ternvl.model import checkpoint, weights


def inspect(adapter: Path, model: str | None = None) -> dict[str, Any]:
    """The adapter as values for JSON; `modules` has one row for each kind of module.

    With `model`, its base, `relative` is the norm of the change over that of the matrix it is added to. Raises
    CheckpointError for an adapter that cannot be read.
    """
    found = lora_file.read(adapter)
    norms = _base_norms(found, model) if model is not None else {}
    kinds: dict[str, list[str]] = {}
    for name in found.changes:
        kinds.setdefault(re.sub(r"\.\d+\.", ".N.", name), []).append(name)
    changes = found.changes.values()
    return {
        "adapter": str(adapter),
        "base": found.config.get("base_model_name_or_path"),
        "rank": found.config["r"],
        "alpha": found.config["lora_alpha"],
        "scale": next(iter(changes)).scale,
        "num_parameters": sum(change.a.numel() + change.b.numel() for change in changes),
        "num_bytes": found.num_bytes,
        "modules": [_row(kind, [(found.changes[n], norms.get(n)) for n in names]) for kind, names in kinds.items()],
    }


def _row(kind: str, members: list[tuple[Change, float | None]]) -> dict[str, Any]:
    norms = [change.norm for change, _ in members]
    row = {
        "module": kind,
        "count": len(members),
        "shape": [len(members[0][0].b), members[0][0].a.shape[1]],
        "norm_mean": sum(norms) / len(norms),
        "norm_max": max(norms),
    }
    relative = [norm / base for norm, (_, base) in zip(norms, members, strict=True) if base]
    return row | ({"relative_mean": sum(relative) / len(relative)} if relative else {})


def _base_norms(found: AdapterFile, model: str) -> dict[str, float]:
    """Norms of the matrices that it changes."""
    folder = checkpoint.resolve(model)
    config = checkpoint.load_config(folder)
    loaded = weights.load(folder, config, dtype=getattr(torch, config.dtype))
    return {name: weight.float().norm().item() for name, weight in found.matrices(loaded).items()}
