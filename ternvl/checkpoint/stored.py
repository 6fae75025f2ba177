"""The weights of a checkpoint that is quantised already: the formats that it has, and its 4 bits as they are stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ternvl.checkpoint import awq
from ternvl.checkpoint.gguf_model import GGUFWeights
from ternvl.checkpoint.names import remap
from ternvl.checkpoint.source import read_object
from ternvl.checkpoint.tensor_files import opened
from ternvl.gguf.formats import FORMATS
from ternvl.kernels.stage_types import FourBits

FOUR_BITS = ("AWQ", *(each.name for each in FORMATS.values() if each.split))
"""The formats that the scheme "checkpoint" keeps as they are."""
_EMBEDDING = "language_model.model.embed_tokens.weight"
_PLAIN = ("F32", "F16", "BF16")


def is_quantised(folder: Path) -> bool:
    """Return whether a checkpoint may hold quantised weights: a GGUF file or one of AWQ. Raises CheckpointError."""
    config = folder / "config.json"
    if any(folder.glob("*.gguf")):
        return True
    return config.is_file() and awq.read_group(read_object(config)) is not None


def has_four_bits(folder: Path) -> bool:
    """Return whether matrices of a checkpoint have 4 bits that can be kept as they are. Raises CheckpointError."""
    return is_quantised(folder) and bool(StoredWeights(folder).names())


def rounding(formats: Mapping[str, int], scheme: str) -> str:
    """Return in words what a quantisation scheme makes of matrices in these formats; an empty text if all are plain.

    `formats` are those of `StoredWeights.formats`.
    """
    stored = {name: count for name, count in formats.items() if name not in _PLAIN}
    kept = {name for name in stored if name in FOUR_BITS} if scheme == "checkpoint" else set()
    if not stored:
        return ""
    if scheme == "none":
        return f"{_listed(stored)} unpacked without rounding"
    again = {name: count for name, count in formats.items() if name not in kept}
    texts = [f"{_listed({name: stored[name] for name in sorted(kept)})} kept as they are"] if kept else []
    if again:
        bits = "4 bits" if scheme == "int4" else "8 bits"
        texts.append(f"{_listed(again)} rounded {'a second time, ' if again.keys() & stored else ''}to {bits}")
    return ", ".join(texts)


def _listed(formats: Mapping[str, int]) -> str:
    return " and ".join(f"{count} matri{'x' if count == 1 else 'ces'} in {name}" for name, count in formats.items())


class StoredWeights:
    """The matrices of a checkpoint's files by the names of the model's parameters."""

    def __init__(self, folder: Path) -> None:
        """Open the files. Raises CheckpointError if they are absent or broken."""
        self._files = ExitStack()
        self._places: dict[str, tuple[Any, str]] = {}
        for file in opened(folder, self._files):
            for name in file.keys() if hasattr(file, "get_four_bits") else ():  # plain safetensors have none
                destination = remap(name)
                if destination is not None and destination.third is None:
                    self._places[destination.name] = (file, name)

    def get(self, names: Sequence[str]) -> FourBits | None:
        """Return matrices with the same inputs as one whose outputs follow each other; None unless all have 4 bits."""
        found = []
        for name in names:
            file, own = self._places.get(name, (None, name))
            if file is None or not file.is_four_bits(own):
                return None
            found.append(file.get_four_bits(own))
        return found[0] if len(found) == 1 else FourBits(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    def embedding(self) -> tuple[Tensor, int] | None:
        """Return the blocks of the embedding, [rows, bytes] uint8, and the number of their GGUF format.

        They are mapped. None unless a GGUF file has it quantised.
        """
        file, name = self._places.get(_EMBEDDING, (None, ""))
        found: tuple[Tensor, int] | None = file.get_blocks(name) if isinstance(file, GGUFWeights) else None
        return found

    def names(self) -> set[str]:
        """Return the names of the language model's matrices that have 4 bits."""
        return {
            place
            for place, (file, name) in self._places.items()
            if place.startswith("language_model.") and file.is_four_bits(name)
        }

    def formats(self) -> dict[str, int]:
        """Return how many matrices of the decoder's layers and its head have which format, the most frequent first.

        The names are llama.cpp's, or "AWQ". The embedding counts if it is the head, too: it is never rounded itself.
        """
        head = "lm_head" if "language_model.lm_head.weight" in self._places else "embed_tokens"
        language = (f"{head}.weight", "_proj.weight")
        found = Counter(
            file.format_of(name)
            for place, (file, name) in self._places.items()
            if place.startswith("language_model.") and place.endswith(language)
        )
        return dict(found.most_common())
