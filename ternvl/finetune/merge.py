"""Merges an adapter into its base model, and writes the result as a checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from ternvl.checkpoint import source, weights
from ternvl.errors import CheckpointError, ConfigError
from ternvl.lora import files
from ternvl.lora.adapter import Adapter
from ternvl.model.internvl import InternVL

_TOKENIZER = ("tokenizer*.json", "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json")


def merge(model: str | None, adapter: Path, out: Path) -> int:
    """Write the merged checkpoint in the base's layout and dtype, with its tokenizer; return the number of changed
    matrices.

    Raises CheckpointError if the model cannot be read, AdapterError if the adapter cannot be read or does not fit the
    model, ConfigError if `out` is not an empty folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is not an empty folder; choose another for the merged checkpoint.")
    folder = source.resolve(model)
    config = source.load_config(folder)
    found = files.read(adapter, str(adapter), files.linears(config), base=str(model or folder.name))
    dtype: torch.dtype = getattr(torch, config.dtype)
    loaded = weights.load(folder, config, dtype=dtype)
    merge_into(loaded, found)
    weights.save(loaded, out, dtype=dtype)
    for pattern in _TOKENIZER:
        for path in folder.glob(pattern):
            shutil.copyfile(path, out / path.name)
    return len(found.modules)


@torch.no_grad()
def merge_into(model: InternVL, adapter: Adapter) -> None:
    """Add each delta, computed in float32, to its matrix of a plain model, in place.

    Raises CheckpointError, before anything is changed, if the adapter changes a head that is tied to the embeddings.
    """
    head = "language_model.lm_head"
    if head in adapter.modules and model.language_model.is_tied:
        raise CheckpointError(
            f"The adapter {adapter.name} changes {head}, which shares its weights with the embeddings in this model."
        )
    for name, parts in adapter.modules.items():
        weight = model.get_parameter(f"{name}.weight")
        for part in parts:
            rows = weight[part.first : part.first + part.num_rows]
            rows.copy_(rows.float() + part.delta().to(rows.device))
