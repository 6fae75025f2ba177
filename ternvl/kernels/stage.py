"""A stage of the network in one call: norm, product with a matrix, activation and sum.

    y = after(norm(x) W^T + bias (+ what adapters add)) (+ residual)

A decoder layer is four stages around its attention. The weights are exact (float32 or bfloat16) or whole numbers of 8
or 4 bits. With whole numbers each row of inputs is quantised to bytes when it arrives, and products are summed exactly.
Before that, inputs may be smoothed, and mixed: a Walsh-Hadamard transform of blocks spreads a large input over its
block (arXiv 2404.00456). The weights undo both. The native side is `cpu/stage.h`. The reference multiplies whole
numbers in float64, which holds their sums exactly, so a row's result does not depend on the other rows there either.

Shapes: M rows, N outputs, K inputs, F outputs after the activation: N / 2 for SwiGLU, whose gates precede its ups.
"""

from __future__ import annotations

import ctypes
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ternvl.kernels import panels as packed
from ternvl.kernels.loader import Int, Int64, Library, Pointer, library
from ternvl.kernels.lora import Segments, Targets, add_reference
from ternvl.kernels.panels import GROUP, PANEL
from ternvl.kernels.rounding import mix, quantised
from ternvl.kernels.stage_types import After, Before, Format, FourBits, Norm

_POINTERS = ("panels", "scales", "offsets", "bias", "smoothing", "norm_weight", "norm_bias")


class _Description(ctypes.Structure):
    """`Stage` of `cpu/stage.h`."""

    _fields_ = (
        *((name, Pointer) for name in _POINTERS),
        *(("n", Int64), ("k", Int64), ("eps", ctypes.c_float)),
        *((name, ctypes.c_int32) for name in ("format", "before", "after", "mixed")),
    )


class Stage(nn.Module):
    """One stage with frozen weights. The functions of `stage_formats.py` make it from a layer."""

    panels: Tensor
    scales: Tensor | None
    """For INT8: [N], padded to whole panels like `offsets` and `bias`."""
    offsets: Tensor | None
    """For INT8: [N] int32, 128 times the sum of an output's weights."""
    bias: Tensor | None
    smoothing: Tensor | None
    """[K], the factors of the inputs before they are quantised; the weights are divided by them."""
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
        mixed: int = 0,
    ) -> None:
        """`size` is N and K; `mixed` is the number of inputs of a block that is mixed, or 0."""
        super().__init__()
        self.out_features, self.in_features = size
        self.format, self.after, self.mixed = format, after, mixed
        self.eps = norm.eps if norm else 0.0
        self.before = Before.NOTHING if norm is None else Before.RMS_NORM if norm.bias is None else Before.LAYER_NORM
        tensors = {"panels": panels, "scales": scales, "offsets": offsets, "bias": bias, "smoothing": smoothing}
        tensors |= {"norm_weight": norm.weight if norm else None, "norm_bias": norm.bias if norm else None}
        for name, tensor in tensors.items():
            self.register_buffer(name, None if tensor is None else tensor.detach().contiguous())

    @property
    def num_outputs(self) -> int:
        """Outputs after the activation, F."""
        return self.out_features // 2 if self.after is After.SWIGLU else self.out_features

    @cached_property
    def description(self) -> _Description:
        """The stage as the native side reads it. It points into this module's tensors, which must not move."""
        pointers = [None if getattr(self, name) is None else getattr(self, name).data_ptr() for name in _POINTERS]
        sizes = (self.out_features, self.in_features, self.eps)
        return _Description(*pointers, *sizes, self.format, self.before, self.after, self.mixed)

    @property
    def num_bytes(self) -> int:
        """The memory of all its tensors."""
        return sum(buffer.nbytes for buffer in self.buffers())

    def forward(
        self, x: Tensor, residual: Tensor | None = None, adapters: tuple[Targets, Segments] | None = None
    ) -> Tensor:
        """x [M, K] float32 -> [M, F]; `residual` [M, F] is added.

        `adapters` are the modules of this stage and the rows that have an adapter. Rows without an adapter are
        bit-identical whether or not `adapters` is given.
        """
        loaded = _library_for(x)
        if loaded is None:
            return stage_reference(self, x, residual, adapters)
        return _run(loaded, self, x, x.new_empty(x.shape[0], self.num_outputs), residual=residual, adapters=adapters)

    def inputs(self, x: Tensor) -> Tensor:
        """Compute the first part alone: x [M, K] after the norm, [M, K]."""
        if self.before is Before.NOTHING:
            return x
        loaded = _library_for(x)
        if loaded is None:
            return inputs_reference(self, x)
        x, out = _rows(x), x.new_empty(x.shape)
        function = loaded.function("ternvl_stage_inputs", Pointer, Pointer, Int64, Int64, Pointer, Int)
        threads = torch.get_num_threads()
        function(ctypes.addressof(self.description), x.data_ptr(), len(x), x.stride(0), out.data_ptr(), threads)
        return out

    def product(self, x: Tensor) -> Tensor:
        """Compute the second part alone: the result of `inputs` -> all outputs with their bias, [M, N]."""
        loaded = _library_for(x)
        if loaded is None:
            return product_reference(self, x)
        return _run(loaded, self, x, x.new_empty(x.shape[0], self.out_features), is_plain=True)


def unpack(stage: Stage) -> tuple[Tensor, Tensor | None]:
    """Return the weights [N, K] as they are stored, and their scales [N, 1] or [N, G], or None for FLOAT32 and
    BFLOAT16."""
    if stage.format is Format.INT8:
        assert stage.scales is not None
        whole = packed.unpack_int8(stage.panels, stage.in_features)
        return from_panels(stage, whole), from_panels(stage, stage.scales)[:, None]
    if stage.format is Format.INT4:
        whole, scales = packed.unpack_int4(stage.panels, stage.in_features)
        return from_panels(stage, whole), from_panels(stage, scales).float()
    return packed.unpack(stage.panels, stage.out_features), None


def unpack_affine4(stage: Stage) -> FourBits:
    """Return the weights of a stage of this format."""
    return FourBits(*(from_panels(stage, each) for each in packed.unpack_affine4(stage.panels)))


def from_panels(stage: Stage, values: Tensor) -> Tensor:
    """Rows [padded N, ...] in the order of panels -> [N, ...] in the order of the layer's outputs."""
    if stage.after is not After.SWIGLU or stage.format in (Format.FLOAT32, Format.BFLOAT16):
        return values[: stage.out_features]
    pairs: Tensor = values.unflatten(0, (-1, 2, PANEL)).transpose(0, 1).flatten(1, 2)  # [2, padded F, ...]
    return pairs[:, : stage.num_outputs].flatten(0, 1)


def stage_reference(
    stage: Stage, x: Tensor, residual: Tensor | None = None, adapters: tuple[Targets, Segments] | None = None
) -> Tensor:
    """`Stage.forward` in plain torch."""
    rows = inputs_reference(stage, x)
    sums = product_reference(stage, rows)
    if adapters is not None:
        targets, segments = adapters
        add_reference(targets.stages[0], segments, rows, sums)
    out = _activated(stage, sums)
    return out if residual is None else residual + out


def inputs_reference(stage: Stage, x: Tensor) -> Tensor:
    """`Stage.inputs` in plain torch."""
    if stage.norm_weight is None:
        return x
    if stage.norm_bias is not None:
        return F.layer_norm(x, (stage.in_features,), stage.norm_weight, stage.norm_bias, stage.eps)
    return stage.norm_weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + stage.eps))


def product_reference(stage: Stage, x: Tensor) -> Tensor:
    """`Stage.product` in plain torch."""
    x = mix(x if stage.smoothing is None else x * stage.smoothing, stage.mixed)
    bias = None if stage.bias is None else from_panels(stage, stage.bias)
    if stage.format is Format.AFFINE4:
        return _affine4_reference(stage, x, bias)
    weight, scales = unpack(stage)
    if scales is None:
        return F.linear(x, weight.to(x.dtype), bias)
    whole, row_scales = quantised(x)
    groups = scales.shape[1]
    size = GROUP if stage.format is Format.INT4 else stage.in_features
    padded = F.pad(whole, (0, groups * size - whole.shape[1])).double().view(len(x), groups, size)
    rows = F.pad(weight, (0, groups * size - weight.shape[1])).double().view(len(weight), groups, size)
    sums = torch.einsum("mgk,ngk->mng", padded, rows).float() * scales  # [M, N, groups]
    total = sums.sum(dim=2) * row_scales
    return total if bias is None else total + bias


def _affine4_reference(stage: Stage, x: Tensor, bias: Tensor | None) -> Tensor:
    weights = unpack_affine4(stage)
    inputs, row_scales = quantised(x)
    groups = F.pad(inputs, (0, -inputs.shape[1] % GROUP)).double().unflatten(1, (-1, GROUP))  # [M, G, 32]
    sums = torch.einsum("mgk,ngk->mng", groups, weights.whole.double().unflatten(1, (-1, GROUP))).float()
    total = sums * weights.scales + groups.sum(dim=2).float()[:, None] * weights.offsets  # [M, N, G]
    out: Tensor = total.sum(dim=2) * row_scales
    return out if bias is None else out + bias


def _activated(stage: Stage, sums: Tensor) -> Tensor:
    """[M, N] -> [M, F]."""
    if stage.after is After.GELU:
        return F.gelu(sums)
    if stage.after is After.SWIGLU:
        gates, ups = sums.chunk(2, dim=1)
        return F.silu(gates) * ups
    return sums


def _library_for(x: Tensor) -> Library | None:
    return library() if x.is_cpu and x.dtype == torch.float32 else None


def _rows(x: Tensor) -> Tensor:
    """x with the elements of each row next to each other."""
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
