"""A GGUF file, the file format of llama.cpp: its metadata, and its tensors. The file is mapped."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ternvl.errors import CheckpointError
from ternvl.gguf.formats import FORMATS
from ternvl.gguf.reader import Reader

_BLOCKS_AT_ONCE = 2**16
"""The blocks that are decoded at a time, so that intermediate results take little memory."""


class Slice(NamedTuple):
    """What is known of a tensor before it is read, as safetensors' `get_slice` has it."""

    shape: tuple[int, ...]
    dtype: str

    def get_shape(self) -> list[int]:
        """Return the shape."""
        return list(self.shape)

    def get_dtype(self) -> str:
        """Return the type that `get_tensor` returns: F32 for quantised tensors."""
        return self.dtype


class GGUFFile:
    """An open file: its metadata, and its tensors with the methods of an open safetensors file."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError for a file that is incomplete, damaged, or has a format that is not read."""
        self.path = path
        try:
            with path.open("rb") as file:
                # A private copy of each changed page: torch warns of memory that cannot be written.
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}.") from error
        try:
            reader = Reader(self._map)
            num_tensors = reader.head()
            self.metadata: Mapping[str, Any] = reader.metadata()
            self._tensors = reader.tensors(num_tensors, self.metadata)
        except (ValueError, struct.error, UnicodeDecodeError) as error:
            reason = str(error) if type(error) is ValueError else "it ends too early or is damaged"
            raise CheckpointError(f"{path} is not a GGUF file that can be read: {reason}.") from error

    def keys(self) -> Iterable[str]:
        """Return the names of the tensors."""
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of a tensor; None if there is no such tensor."""
        stored = self._tensors.get(name)
        return None if stored is None else stored.shape

    def get_slice(self, name: str) -> Slice:
        """Return what is known of a tensor."""
        stored = self._tensors[name]
        return Slice(stored.shape, "F32" if stored.format.decode else stored.format.name)

    def get_tensor(self, name: str) -> Tensor:
        """Return a tensor: mapped if it holds plain numbers, in float32 if it is quantised."""
        format, shape, _, _ = self._tensors[name]
        if format.decode is None:
            return self._content_of(name).view(format.dtype).view(shape)
        blocks = self._content_of(name).view(-1, format.block_bytes)
        out = torch.empty(len(blocks), format.block_size)
        for first in range(0, len(blocks), _BLOCKS_AT_ONCE):
            some = slice(first, first + _BLOCKS_AT_ONCE)
            out[some] = format.decode(blocks[some])
        return out.view(shape)

    def get_blocks(self, name: str) -> tuple[Tensor, int] | None:
        """Return the rows of a quantised matrix as they are, [N, bytes] uint8, and the number of its format.

        None for plain numbers.
        """
        format, shape, _, _ = self._tensors[name]
        numbers = [number for number, each in FORMATS.items() if each is format]
        return None if format.decode is None else (self._content_of(name).view(shape[0], -1), numbers[0])

    def format_of(self, name: str) -> str:
        """Return the name of a tensor's format."""
        return self._tensors[name].format.name

    def is_four_bits(self, name: str) -> bool:
        """Return whether `get_four_bits` can read a tensor."""
        return self._tensors[name].format.split is not None and len(self._tensors[name].shape) == 2

    def get_four_bits(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return a matrix [N, K] of 4 bits as it is stored.

        Numbers [N, K] from 0 to 15, and scales and offsets [N, K / 32] float32, of which each number is
        scale * number + offset.
        """
        format, shape, _, _ = self._tensors[name]
        assert format.split is not None, name
        parts = format.split(self._content_of(name).view(-1, format.block_bytes))
        numbers, scales, offsets = (each.reshape(shape[0], -1) for each in parts)
        return numbers.to(torch.int8), scales, offsets

    def _content_of(self, name: str) -> Tensor:
        stored = self._tensors[name]
        return torch.frombuffer(self._map, dtype=torch.uint8, count=stored.num_bytes, offset=stored.start)
