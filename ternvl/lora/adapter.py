"""An adapter in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ternvl.kernels.lora import Weights
from ternvl.types import FileState


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """A LoRA adapter in memory."""

    name: str
    digest: bytes
    """SHA-256 of its files. Caches use it as a key, so adapters never share cached values, whatever their names."""
    files: Mapping[str, FileState]
    """What its two files held when they were read, by their names."""
    modules: Mapping[str, tuple[Weights, ...]]
    """The matrices by the module's name in the original layout; several if the adapter changes parts of a module."""

    @property
    def touches_images(self) -> bool:
        """Whether the adapter changes image features, that is, any module outside the language model."""
        return any(not name.startswith("language_model.") for name in self.modules)

    @property
    def rank(self) -> int:
        """The highest rank of any module."""
        return max(weights.rank for parts in self.modules.values() for weights in parts)

    @property
    def num_bytes(self) -> int:
        """The memory of all its matrices in bytes."""
        return sum(weights.num_bytes for parts in self.modules.values() for weights in parts)
