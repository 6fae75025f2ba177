"""Reads the head of a GGUF file.

Nothing in it is trusted: every length is compared with what is left of the file before it is used.

Specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Versions 2 and 3, little endian.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from math import prod
from typing import Any, NamedTuple

from ternvl.gguf.formats import FORMATS, OTHERS, BlockFormat

_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_MOST_TENSORS = _MOST_KEYS = 100_000
_MOST_DIMENSIONS = 4
_MOST_NUMBERS = 2**40


class Stored(NamedTuple):
    """Where a tensor is, and in which format."""

    format: BlockFormat
    shape: tuple[int, ...]
    """As in PyTorch: the file has the dimensions in reverse."""
    start: int
    num_bytes: int


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


class Reader:
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

    def tensors(self, count: int, metadata: Mapping[str, Any]) -> dict[str, Stored]:
        """Read where the tensors are."""
        described = [self._described() for _ in range(count)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1) or alignment > 2**20:
            raise ValueError(f"its alignment is {alignment!r}")
        data = -(-self._at // alignment) * alignment
        tensors: dict[str, Stored] = {}
        for name, stored in described:
            start = data + stored.start
            if stored.start % alignment or start + stored.num_bytes > len(self._content):
                raise ValueError(f"the tensor {name} does not lie within it; its download may be incomplete")
            if name in tensors:
                raise ValueError(f"it has two tensors {name}")
            tensors[name] = stored._replace(start=start)
        return tensors

    def _described(self) -> tuple[str, Stored]:
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
        return name, Stored(format, shape, offset, count // format.block_size * format.block_bytes)

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
