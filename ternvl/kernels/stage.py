"""A stage of the network in one call: norm, product with a matrix, activation, sum.

    y = after(norm(x) W^T + bias (+ what adapters add)) (+ residual)

A decoder layer is four stages around its attention. The weights are float32 or bfloat16, exact, or whole numbers of 8
or 4 bits: then a row of inputs becomes bytes as it comes, and products are summed exactly. `cpu/stage.h` has the
native side, `reference_stage.py` the same in plain torch.

Shapes: M rows, N outputs, K inputs, F outputs after the activation: N / 2 of SwiGLU, whose gates come before its ups.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import torch
from torch import Tensor, nn

from ternvl.kernels import reference_stage
from ternvl.kernels.loader import library
from ternvl.kernels.lora import Segments, Targets
from ternvl.kernels.native import Int, Int64, Library, Pointer


class Format(IntEnum):
    """How weights are stored."""

    FLOAT32 = 0
    BFLOAT16 = 1
    INT8 = 2
    """One scale an output."""
    INT4 = 3
    """One scale for each 32 inputs of an output."""


class Before(IntEnum):
    """What is done to a row of inputs."""

    NOTHING = 0
    RMS_NORM = 1
    LAYER_NORM = 2


class After(IntEnum):
    """What is done to the outputs."""

    NOTHING = 0
    GELU = 1
    """The exact one."""
    SWIGLU = 2


@dataclass(frozen=True, slots=True)
class Norm:
    """The norm before a product: RMSNorm where there is no bias."""

    weight: Tensor
    bias: Tensor | None
    eps: float


_POINTERS = ("panels", "scales", "offsets", "bias", "smoothing", "norm_weight", "norm_bias")


class _Description(ctypes.Structure):
    """`Stage` of `cpu/stage.h`."""

    _fields_ = (
        *((name, Pointer) for name in _POINTERS),
        *(("n", Int64), ("k", Int64), ("eps", ctypes.c_float)),
        *((name, ctypes.c_int32) for name in ("format", "before", "after")),
    )


class Stage(nn.Module):
    """One stage; frozen. `stage_formats.py` makes it from weights."""

    panels: Tensor
    scales: Tensor | None
    """Of INT8: [N], padded to whole panels as `offsets` and `bias` are."""
    offsets: Tensor | None
    """Of INT8: [N] int32, 128 times the sum of an output's weights."""
    bias: Tensor | None
    smoothing: Tensor | None
    """[K], what inputs are multiplied by before they become bytes; the weights hold its inverse."""
    norm_weight: Tensor | None
    norm_bias: Tensor | None

    def __init__(
        self,
        size: tuple[int, int],
        format: Format,
        after: After,
        panels: Tensor,
        *,
        scales: Tensor | None = None,
        offsets: Tensor | None = None,
        bias: Tensor | None = None,
        smoothing: Tensor | None = None,
        norm: Norm | None = None,
    ) -> None:
        """`size` is N and K."""
        super().__init__()
        self.out_features, self.in_features = size
        self.format, self.after = format, after
        self.eps = norm.eps if norm else 0.0
        self.before = Before.NOTHING if norm is None else Before.RMS_NORM if norm.bias is None else Before.LAYER_NORM
        tensors = {"panels": panels, "scales": scales, "offsets": offsets, "bias": bias, "smoothing": smoothing}
        tensors |= {"norm_weight": norm.weight if norm else None, "norm_bias": norm.bias if norm else None}
        for name, tensor in tensors.items():
            self.register_buffer(name, None if tensor is None else tensor.detach().contiguous())

    @property
    def num_outputs(self) -> int:
        """F."""
        return self.out_features // 2 if self.after is After.SWIGLU else self.out_features

    @cached_property
    def description(self) -> _Description:
        """What the native side reads. It points into this module's tensors, which stay where they are."""
        pointers = [None if getattr(self, name) is None else getattr(self, name).data_ptr() for name in _POINTERS]
        sizes = (self.out_features, self.in_features, self.eps)
        return _Description(*pointers, *sizes, self.format, self.before, self.after)

    @property
    def num_bytes(self) -> int:
        """Memory of all its tensors."""
        return sum(buffer.nbytes for buffer in self.buffers())

    def forward(
        self, x: Tensor, residual: Tensor | None = None, adapters: tuple[Targets, Segments] | None = None
    ) -> Tensor:
        """x [M, K] float32 -> [M, F]; `residual` [M, F] is added. `adapters` are the stage's modules and the rows that
        have some; rows without have the bits that they have without it."""
        loaded = _library_for(x)
        if loaded is None:
            return reference_stage.stage(self, x, residual, adapters)
        return _run(loaded, self, x, x.new_empty(x.shape[0], self.num_outputs), residual=residual, adapters=adapters)

    def inputs(self, x: Tensor) -> Tensor:
        """The first part alone: rows after the norm, [M, K]."""
        if self.before is Before.NOTHING:
            return x
        loaded = _library_for(x)
        if loaded is None:
            return reference_stage.inputs(self, x)
        x, out = _rows(x), x.new_empty(x.shape)
        function = loaded.function("ternvl_stage_inputs", Pointer, Pointer, Int64, Int64, Pointer, Int)
        threads = torch.get_num_threads()
        function(ctypes.addressof(self.description), x.data_ptr(), len(x), x.stride(0), out.data_ptr(), threads)
        return out

    def product(self, x: Tensor) -> Tensor:
        """The second part alone: what `inputs` gave -> all outputs with their bias, [M, N]."""
        loaded = _library_for(x)
        if loaded is None:
            return reference_stage.product(self, x)
        return _run(loaded, self, x, x.new_empty(x.shape[0], self.out_features), is_plain=True)


def _library_for(x: Tensor) -> Library | None:
    return library() if x.is_cpu and x.dtype == torch.float32 else None


def _rows(x: Tensor) -> Tensor:
    """x with each row's elements side by side."""
    return x if x.stride(1) == 1 and x.stride(0) >= x.shape[1] else x.contiguous()


_STAGE = (Pointer, Pointer, Int64, Int64, *[Pointer] * 4, Int64, Int, ctypes.c_bool)


def _run(
    library: Library, stage: Stage, x: Tensor, out: Tensor, *,
    residual: Tensor | None = None, adapters: tuple[Targets, Segments] | None = None, is_plain: bool = False,
) -> Tensor:  # fmt: skip
    assert x.shape[1] == stage.in_features, (x.shape, stage.in_features)
    x, summand = _rows(x), None if residual is None else residual.contiguous()
    added = rows = None
    if adapters is not None:
        targets, segments = adapters
        added, rows = ctypes.addressof(targets.array), segments.native(len(x))
    library.function("ternvl_stage", *_STAGE)(
        *(ctypes.addressof(stage.description), x.data_ptr(), x.shape[0], x.stride(0)),
        *(added, None if rows is None else ctypes.addressof(rows), None if summand is None else summand.data_ptr()),
        *(out.data_ptr(), out.stride(0), torch.get_num_threads(), is_plain),
    )
    return out
