"""Reading GGUF, the file format of llama.cpp. A file is mapped, and nothing in it is trusted: every length is compared
with what is left of the file before it is used.

Specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Versions 2 and 3, little endian.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ternvl.errors import CheckpointError
from ternvl.gguf.formats import FORMATS, OTHERS, BlockFormat

_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_MOST_TENSORS = _MOST_KEYS = 100_000
_MOST_DIMENSIONS = 4
_MOST_NUMBERS = 2**40
_BLOCKS_AT_ONCE = 2**16
"""The blocks that are decoded at a time, so that intermediate results take little memory."""


class _Stored(NamedTuple):
    format: BlockFormat
    shape: tuple[int, ...]
    """As in PyTorch: the file has the dimensions in reverse."""
    start: int
    num_bytes: int


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


class TextList(NamedTuple):
    """A list of texts in the metadata, such as a vocabulary. It is read when it is needed."""

    content: mmap.mmap
    start: int
    size: int
    """The number of texts."""

    def read(self) -> list[str]:
        """Return the texts. Raises UnicodeDecodeError."""
        at, found = self.start, []
        for _ in range(self.size):
            (length,) = struct.unpack_from("<Q", self.content, at)
            at += 8 + length
            found.append(self.content[at - length : at].decode())
        return found


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
            reader = _Reader(self._map)
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


class _Reader:
    """Reads one value after the other. Raises ValueError with the reason, and struct.error at the end of the file."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._at = 0

    def head(self) -> int:
        """Read the first bytes, and return the number of tensors."""
        if self._content[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self._at = 4
        version = self._number("<I")
        if version not in (2, 3):
            raise ValueError(f"its version is {version & 0xFFFFFFFF}, and only 2 and 3 in little endian are read")
        num_tensors, self._num_keys = self._number("<Q"), self._number("<Q")
        if num_tensors > _MOST_TENSORS or self._num_keys > _MOST_KEYS:
            raise ValueError(f"it claims {num_tensors} tensors and {self._num_keys} keys")
        return int(num_tensors)

    def metadata(self) -> dict[str, Any]:
        """Read the metadata. Lists of texts, such as vocabularies, are passed over: their value is `TextList`."""
        return {self._text(): self._value(self._number("<I")) for _ in range(self._num_keys)}

    def tensors(self, count: int, metadata: Mapping[str, Any]) -> dict[str, _Stored]:
        """Read where the tensors are."""
        described = [self._described() for _ in range(count)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1) or alignment > 2**20:
            raise ValueError(f"its alignment is {alignment!r}")
        data = -(-self._at // alignment) * alignment
        tensors: dict[str, _Stored] = {}
        for name, stored in described:
            start = data + stored.start
            if stored.start % alignment or start + stored.num_bytes > len(self._content):
                raise ValueError(f"the tensor {name} does not lie within it; its download may be incomplete")
            if name in tensors:
                raise ValueError(f"it has two tensors {name}")
            tensors[name] = stored._replace(start=start)
        return tensors

    def _described(self) -> tuple[str, _Stored]:
        name, num_dimensions = self._text(), self._number("<I")
        if not name.isprintable():
            raise ValueError(f"it has a tensor {name[:100]!r}")
        if num_dimensions > _MOST_DIMENSIONS:
            raise ValueError(f"the tensor {name} has {num_dimensions} dimensions")
        shape = tuple(int(self._number("<Q")) for _ in range(num_dimensions))[::-1]
        number, offset = self._number("<I"), int(self._number("<Q"))
        format = FORMATS.get(number)
        if format is None:
            served = ", ".join(each.name for each in FORMATS.values())
            raise ValueError(f"the tensor {name} has the format {OTHERS.get(number, number)}; only {served} are read")
        count, columns = prod(shape), shape[-1] if shape else 1
        if not 0 < count <= _MOST_NUMBERS or columns % format.block_size:
            raise ValueError(f"the tensor {name} has the shape {list(shape)}, which {format.name} cannot have")
        return name, _Stored(format, shape, offset, count // format.block_size * format.block_bytes)

    def _number(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self._content, self._at)
        self._at += struct.calcsize(form)
        return value

    def _text(self) -> str:
        return self._content[self._skip_text() : self._at].decode()

    def _skip_text(self) -> int:
        """Pass over a text, and return where it begins."""
        length = self._number("<Q")
        start = self._at
        if length > len(self._content) - start:
            raise ValueError("a text in it ends after the file")
        self._at += length
        return start

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            return self._number(_form(kind))
        kind, count = self._number("<I"), self._number("<Q")
        if count > len(self._content) - self._at:
            raise ValueError("a list in it ends after the file")
        if kind == _STRING:
            texts = TextList(self._content, self._at, count)
            for _ in range(count):
                self._skip_text()
            return texts
        form = _form(kind)
        size = struct.calcsize(form)
        if count * size > len(self._content) - self._at:
            raise ValueError("a list in it ends after the file")
        values = struct.unpack_from(f"<{count}{form[1]}", self._content, self._at)
        self._at += count * size
        return list(values)


def _form(kind: int) -> str:
    if kind not in _SCALARS:
        raise ValueError(f"it holds a value of the unknown type {kind}")
    return _SCALARS[kind]
