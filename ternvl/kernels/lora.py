"""What adapters add to a module's output, B (scales * A x), for many rows and many adapters in one call: native where
it can be, else in plain torch. Within a stage that is part of the stage's own call (`stage.py`).

A row's bits follow from its own input and its adapter alone; a row without one is not touched. The arithmetic is told
in `cpu/lora.cpp`.

Shapes: T rows of x, K inputs, N outputs, R rank; panels as in `panels.py`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ternvl.kernels import panels
from ternvl.kernels.loader import Int, Int64, Library, Pointer, library
from ternvl.kernels.memory import allocate, make_huge
from ternvl.kernels.panels import PANEL

_LINE = 64
"""Bytes of a cache line."""


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """What one adapter adds to (some rows of) one module."""

    a: Tensor
    """Panels of A [R, K], float32, bfloat16 or int8."""
    b: Tensor
    """Panels of B [N, R] of the same type; beside int8 bytes [ceil(N / 16), ceil(R / 4), 16, 4], each 128 more than it
    stands for."""
    scales: Tensor
    """[R] float32, padded with zeros to whole panels."""
    rank: int
    num_rows: int
    """N, of B."""
    first: int = 0
    """Output of the module that row 0 of B adds to: more than 0 where the module stacks several matrices."""

    @classmethod
    def pack(cls, a: Tensor, b: Tensor, scale: float, first: int = 0, *, in_int8: bool = False) -> Weights:
        """A [R, K] and B [N, R], float32 or bfloat16, whose product is scaled. `in_int8` makes whole numbers from -127
        to 127 of each row of A and each column of B; otherwise they keep their type."""
        assert a.dtype == b.dtype
        assert a.dtype in (torch.float32, torch.bfloat16), a.dtype
        assert a.shape[0] == b.shape[1], (a.shape, b.shape)
        rank, num_rows = b.shape[1], b.shape[0]
        scales = torch.full((rank,), scale, dtype=torch.float32, device=a.device)
        if in_int8:
            (a, a_units), (b, b_units) = _whole(a, 1), _whole(b, 0)
            scales *= a_units * b_units
            a, b = panels.pack(a), panels.pack_int8(b)[0].view(torch.uint8) ^ 128
        else:
            a, b = panels.pack(a), panels.pack(b)
        return cls(a, b, F.pad(scales, (0, -rank % PANEL)), rank, num_rows, first)

    @property
    def num_inputs(self) -> int:
        """K."""
        return self.a.shape[1]

    @property
    def num_bytes(self) -> int:
        """Memory of both matrices."""
        return self.a.nbytes + self.b.nbytes

    def matrices(self) -> tuple[Tensor, Tensor]:
        """Scaled A [R, K] and B [N, R] as float32."""
        a = panels.unpack(self.a, self.rank).float() * self.scales[: self.rank, None]
        if self.b.dtype != torch.uint8:
            return a, panels.unpack(self.b, self.num_rows).float()
        b = panels.unpack_int8((self.b ^ 128).view(torch.int8), self.rank)
        return a, b[: self.num_rows].float()

    def delta(self) -> Tensor:
        """B A as float32 [N, K]: what merging adds to the module's weight."""
        a, b = self.matrices()
        return b @ a


def side_by_side(weights: Sequence[Weights]) -> list[Weights]:
    """The same in one piece of memory, in the order in which they are read: those of a CPU come faster from there."""
    pieces = [each.a for each in weights] + [each.b for each in weights]
    if not all(piece.is_cpu for piece in pieces):
        return list(weights)
    sizes = [-(-piece.nbytes // _LINE) * _LINE for piece in pieces]
    memory = allocate(sum(sizes))
    moved = []
    for piece, place in zip(pieces, memory.split(sizes), strict=True):
        moved.append(place[: piece.nbytes].view(piece.dtype).view(piece.shape).copy_(piece))
    make_huge(memory)
    return [replace(each, a=a, b=b) for each, a, b in zip(weights, moved, moved[len(weights) :], strict=False)]


def _whole(matrix: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Whole numbers int8 and what 1 stands for in each vector along `dim`."""
    sizes = matrix.float().abs().amax(dim, keepdim=True) / 127
    whole = torch.round(matrix.float() / torch.where(sizes > 0, sizes, 1))
    return whole.to(torch.int8), sizes.flatten()


class _Entry(ctypes.Structure):
    _fields_ = (
        *((name, Pointer) for name in ("a", "b", "scales")),
        *((name, Int64) for name in ("size", "rank", "rows", "first")),
    )


class _Segment(ctypes.Structure):
    _fields_ = (("slot", Int64), ("start", Int64), ("stop", Int64))


class _Job(ctypes.Structure):
    _fields_ = (("table", Pointer), ("slots", Int64), ("column", Int64), ("scales", Pointer))


class _Added(ctypes.Structure):
    _fields_ = (("jobs", Pointer), ("num_jobs", Int64))


class Adapters(ctypes.Structure):
    """`Adapters` of `cpu/lora.h`."""

    _fields_ = (("segments", Pointer), ("num_segments", Int64), ("unit", Int64))


_ARGUMENTS = (*[Pointer] * 3, *[Int64] * 3, Pointer, *[Int64] * 2, Int)


class Segments:
    """Which rows of a run have which adapter: `(slot, start, stop)`, counted in units of equally many rows."""

    def __init__(self, spans: Sequence[tuple[int, int, int]], num_units: int) -> None:
        """A run has `num_units` in all: its tokens, or its tiles, each of which is as many rows as a module makes of
        it. Spans do not overlap."""
        assert all(0 <= start < stop <= num_units for _, start, stop in spans), (spans, num_units)
        self.spans = tuple(spans)
        self.num_units = num_units
        # Asked for once a run, as are the threads: a run calls hundreds of times.
        self.kernels = library() if spans else None
        self.num_threads = torch.get_num_threads()
        self._array = (_Segment * len(spans))(*(_Segment(*span) for span in spans))

    def rows_a_unit(self, num_rows: int) -> int:
        """Of a module that makes this many rows of all units."""
        assert num_rows % self.num_units == 0, (num_rows, self.num_units)
        return num_rows // self.num_units

    def native(self, num_rows: int) -> Adapters:
        """What the native side reads, for a module with so many rows. It points into this object."""
        return Adapters(ctypes.addressof(self._array), len(self.spans), self.rows_a_unit(num_rows))


class Table:
    """The weights for one module, by the adapters' slots."""

    def __init__(self) -> None:
        self.weights: list[Weights | None] = []
        self.array = (_Entry * 0)()

    @property
    def is_empty(self) -> bool:
        return not any(self.weights)

    def put(self, slot: int, weights: Weights | None) -> None:
        """Set a slot's weights, or none. Not while rows of the slot are computed."""
        if slot >= len(self.weights):
            missing = max(slot + 1, 2 * len(self.weights)) - len(self.weights)
            self.weights += [None] * missing
            grown = (_Entry * len(self.weights))()
            ctypes.memmove(grown, self.array, ctypes.sizeof(self.array))
            self.array = grown
        self.weights[slot] = weights
        if weights is None:
            self.array[slot] = _Entry()
        else:
            pointers = (each.data_ptr() for each in (weights.a, weights.b, weights.scales))
            sizes = (weights.a.itemsize, weights.rank, weights.num_rows, weights.first)
            self.array[slot] = _Entry(*pointers, *sizes)


class Target(NamedTuple):
    """A module that adapters may change."""

    table: Table
    column: int = 0
    """Where its outputs begin in those of all modules with the same input."""
    scales: Tensor | None = None
    """[N] float32, what is added to each output is multiplied by."""


class Targets:
    """The modules of several stages, for native calls. It holds copies: tables may be put into, but that is not seen.

    What the native side reads of all stages lies together: a step reads it once, out of memory.
    """

    def __init__(self, stages: Sequence[Sequence[Target]]) -> None:
        self.stages = stages
        targets = [target for stage in stages for target in stage]
        self._entries = (_Entry * sum(len(target.table.array) for target in targets))()
        self._jobs = (_Job * len(targets))()
        self.array = (_Added * len(stages))()
        entry, job = ctypes.addressof(self._entries), ctypes.addressof(self._jobs)
        for number, (table, column, scales) in enumerate(targets):
            ctypes.memmove(entry, table.array, ctypes.sizeof(table.array))
            size = None if scales is None else scales.data_ptr()
            self._jobs[number] = _Job(entry, len(table.array), column, size)
            entry += ctypes.sizeof(table.array)
        for number, stage in enumerate(stages):
            self.array[number] = _Added(job, len(stage))
            job += len(stage) * ctypes.sizeof(_Job)


def add(targets: Sequence[Target], segments: Segments, x: Tensor, out: Tensor) -> None:
    """Add to the outputs [T, N] of modules what the segments' adapters make of their common input x [T, K], in place.

    T is a multiple of `segments.num_units`; `out` may be some columns of a wider tensor.
    """
    assert x.shape[0] == out.shape[0]
    if x.is_cpu and segments.kernels is not None and x.dtype == out.dtype == torch.float32:
        _add(segments.kernels, targets, segments, x, out)
    else:
        add_reference(targets, segments, x, out)


def add_reference(targets: Sequence[Target], segments: Segments, x: Tensor, out: Tensor) -> None:
    """`add` in plain torch, on any device and in any floating type."""
    unit = segments.rows_a_unit(x.shape[0])
    for table, column, sizes in targets:
        for slot, start, stop in segments.spans:
            weights = table.weights[slot] if slot < len(table.weights) else None
            if weights is None:
                continue
            a, b = (matrix.to(x.dtype) for matrix in weights.matrices())
            added = (x[start * unit : stop * unit] @ a.T) @ b.T
            first, last = weights.first, weights.first + weights.num_rows
            if sizes is not None:
                added = added * sizes[first:last]
            out[start * unit : stop * unit, column + first : column + last] += added


def _add(library: Library, targets: Sequence[Target], segments: Segments, x: Tensor, out: Tensor) -> None:
    x = x if x.stride(1) == 1 else x.contiguous()
    assert out.stride(1) == 1
    added, adapters = Targets([targets]), segments.native(x.shape[0])
    library.function("ternvl_lora_add", *_ARGUMENTS)(
        *(ctypes.addressof(added.array), ctypes.addressof(adapters), x.data_ptr(), len(x), x.stride(0), x.shape[1]),
        *(out.data_ptr(), out.shape[1], out.stride(0), segments.num_threads),
    )
