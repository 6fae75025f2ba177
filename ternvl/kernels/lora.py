"""What adapters add to a module's output, B (scales * A x), for many rows and many adapters in one call: native where
possible, otherwise in plain torch. In a stage it is part of the stage's own call (`stage.py`).

The bits of a row depend only on its own input and its adapter; a row without an adapter does not change.
`cpu/lora/lora.cpp` describes the arithmetic.

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
    """The matrices of one adapter for one module, or for some of the module's outputs."""

    a: Tensor
    """Panels of A [R, K], float32, bfloat16 or int8."""
    b: Tensor
    """Panels of B [N, R] of the same type. For int8 they are bytes [ceil(N / 16), ceil(R / 4), 16, 4], each 128 above
    its value."""
    scales: Tensor
    """[R] float32, padded with zeros to whole panels."""
    rank: int
    num_rows: int
    """N, the rows of B."""
    first: int = 0
    """The output of the module that row 0 of B adds to. It is not 0 if the module stacks several matrices."""

    @classmethod
    def pack(cls, a: Tensor, b: Tensor, scale: float, first: int = 0, *, in_int8: bool = False) -> Weights:
        """Pack A [R, K] and B [N, R], float32 or bfloat16, whose product is multiplied by `scale`.

        `in_int8` quantises each row of A and each column of B to whole numbers from -127 to 127; otherwise they keep
        their type.
        """
        assert a.dtype == b.dtype
        assert a.dtype in (torch.float32, torch.bfloat16), a.dtype
        assert a.shape[0] == b.shape[1], (a.shape, b.shape)
        rank, num_rows = b.shape[1], b.shape[0]
        scales = torch.full((rank,), scale, dtype=torch.float32, device=a.device)
        if in_int8:
            (a, a_scales), (b, b_scales) = _whole(a, 1), _whole(b, 0)
            scales *= a_scales * b_scales
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
        """The memory of both matrices."""
        return self.a.nbytes + self.b.nbytes

    def matrices(self) -> tuple[Tensor, Tensor]:
        """Return the scaled A [R, K] and B [N, R] as float32."""
        a = panels.unpack(self.a, self.rank).float() * self.scales[: self.rank, None]
        if self.b.dtype != torch.uint8:
            return a, panels.unpack(self.b, self.num_rows).float()
        b = panels.unpack_int8((self.b ^ 128).view(torch.int8), self.rank)
        return a, b[: self.num_rows].float()

    def delta(self) -> Tensor:
        """Return B A as float32 [N, K], which merging adds to the module's weight."""
        a, b = self.matrices()
        return b @ a


def side_by_side(weights: Sequence[Weights]) -> list[Weights]:
    """Return the same weights in one piece of memory, in the order in which they are read.

    A CPU reads them faster from there. Weights on another device are returned as they are.
    """
    pieces = [each.a for each in weights] + [each.b for each in weights]
    if not all(piece.is_cpu for piece in pieces):
        return list(weights)
    sizes = [-(-piece.nbytes // _LINE) * _LINE for piece in pieces]
    memory = allocate(sum(sizes))
    moved = []
    for piece, part in zip(pieces, memory.split(sizes), strict=True):
        moved.append(part[: piece.nbytes].view(piece.dtype).view(piece.shape).copy_(piece))
    make_huge(memory)
    return [replace(each, a=a, b=b) for each, a, b in zip(weights, moved, moved[len(weights) :], strict=False)]


def _whole(matrix: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return whole numbers int8, and the scale of each vector along `dim`."""
    scales = matrix.float().abs().amax(dim, keepdim=True) / 127
    whole = torch.round(matrix.float() / torch.where(scales > 0, scales, 1))
    return whole.to(torch.int8), scales.flatten()


class _Entry(ctypes.Structure):
    """`Entry` of `cpu/lora/lora.h`."""

    _fields_ = (
        *((name, Pointer) for name in ("a", "b", "scales")),
        *((name, Int64) for name in ("size", "rank", "rows", "first")),
    )


class _Segment(ctypes.Structure):
    """`Segment` of `cpu/lora/lora.h`."""

    _fields_ = (("slot", Int64), ("start", Int64), ("stop", Int64))


class _Job(ctypes.Structure):
    """`Job` of `cpu/lora/lora.h`."""

    _fields_ = (("table", Pointer), ("slots", Int64), ("column", Int64), ("scales", Pointer))


class _Added(ctypes.Structure):
    """`Added` of `cpu/lora/lora.h`."""

    _fields_ = (("jobs", Pointer), ("num_jobs", Int64))


class Adapters(ctypes.Structure):
    """`Adapters` of `cpu/lora/lora.h`."""

    _fields_ = (("segments", Pointer), ("num_segments", Int64), ("unit", Int64))


_ARGUMENTS = (*[Pointer] * 3, *[Int64] * 3, Pointer, *[Int64] * 2, Int)


class Segments:
    """The rows of a run that have an adapter: `(slot, start, stop)`, counted in units of equally many rows."""

    def __init__(self, spans: Sequence[tuple[int, int, int]], num_units: int) -> None:
        """`num_units` is the number of all units of the run: its tokens, or its image tiles. In each module all units
        have the same number of rows. Spans must not overlap."""
        assert all(0 <= start < stop <= num_units for _, start, stop in spans), (spans, num_units)
        self.spans = tuple(spans)
        self.num_units = num_units
        # The library and the number of threads are read once, because a run makes hundreds of calls.
        self.kernels = library() if spans else None
        self.num_threads = torch.get_num_threads()
        self._array = (_Segment * len(spans))(*(_Segment(*span) for span in spans))

    def rows_a_unit(self, num_rows: int) -> int:
        """Return the rows of a unit in a module with `num_rows` rows in all."""
        assert num_rows % self.num_units == 0, (num_rows, self.num_units)
        return num_rows // self.num_units

    def native(self, num_rows: int) -> Adapters:
        """Return what the native side reads for a module with `num_rows` rows. It points into this object."""
        return Adapters(ctypes.addressof(self._array), len(self.spans), self.rows_a_unit(num_rows))


class Table:
    """The weights of all adapters for one module, by the adapters' slots."""

    def __init__(self) -> None:
        self.weights: list[Weights | None] = []
        self.array = (_Entry * 0)()

    @property
    def is_empty(self) -> bool:
        """Whether no slot has weights."""
        return not any(self.weights)

    def put(self, slot: int, weights: Weights | None) -> None:
        """Set or clear the weights of a slot. No call may be computing rows of the slot meanwhile."""
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
    """Where its outputs begin among those of all modules with the same input."""
    scales: Tensor | None = None
    """[N] float32, the factor of what is added to each output."""


class Targets:
    """The modules of several stages, for native calls.

    It holds copies of the tables, so later changes to a table have no effect on it. The copies of all stages are next
    to each other, because each step reads them from memory once.
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
    """Add to the outputs [T, N] of modules what the adapters of the segments compute from x [T, K], in place.

    All modules have the input x. T is a multiple of `segments.num_units`; `out` may be some columns of a wider tensor.
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
