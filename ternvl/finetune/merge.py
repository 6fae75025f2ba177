"""An adapter and its base as one checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from ternvl.errors import ConfigError
from ternvl.finetune import lora_file
from ternvl.model import checkpoint, weights

_TOKENIZER = ("tokenizer*.json", "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json")


def merge(model: str | None, adapter: Path, out: Path) -> int:
    """Write the merged checkpoint in the original layout, in the base's type, with its tokenizer.

    Returns how many matrices differ from the base. Raises CheckpointError for a model or an adapter that cannot be
    read or do not fit together, ConfigError where `out` holds something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is not an empty folder; choose another for the merged checkpoint.")
    folder = checkpoint.resolve(model)
    found = lora_file.read(adapter)
    config = checkpoint.load_config(folder)
    dtype: torch.dtype = getattr(torch, config.dtype)
    loaded = weights.load(folder, config, dtype=dtype)
    found.merge_into(loaded)
    weights.save(loaded, out, dtype=dtype)
    for pattern in _TOKENIZER:
        for path in folder.glob(pattern):
            shutil.copyfile(path, out / path.name)
    return len(found.changes)
