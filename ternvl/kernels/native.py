"""The compiled kernels as functions on tensors; `reference.py` has the same in plain torch.

Shapes: M rows, N outputs, K inputs; panels [ceil(N / 16), K, 16], the last padded with zeros.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch  # also brings the OpenMP library whose threads the kernels share
from torch import Tensor

from ternvl.kernels import build

Pointer, Int, Int64, Float = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float
PANEL = 16
"""Outputs of a panel."""


class Library:
    """The kernels of one instruction set."""

    def __init__(self, isa: str) -> None:
        """Raises OSError where there is no such library or it cannot be loaded."""
        path = build.find(isa)
        if path is None:
            raise OSError(f"there is no library for {isa}")
        self.isa = isa
        self._library = ctypes.CDLL(str(path))
        self._functions: dict[str, Any] = {}

    def function(self, name: str, *arguments: Any, result: Any = None) -> Any:
        """An exported function by its name and the types of its arguments. Raises AttributeError for an unknown one."""
        if name not in self._functions:
            function = self._library[name]
            function.argtypes, function.restype = arguments, result
            self._functions[name] = function
        return self._functions[name]


def pack(library: Library, weight: Tensor) -> Tensor:
    """weight [N, K], float32 or bfloat16 -> panels of the same type."""
    weight = weight.contiguous()
    n, k = weight.shape
    panels = weight.new_empty(-(-n // PANEL), k, PANEL)
    function = library.function("ternvl_pack_linear", Pointer, Int, Int64, Int64, Pointer, Int)
    function(weight.data_ptr(), weight.itemsize, n, k, panels.data_ptr(), torch.get_num_threads())
    return panels


def pack_int8(library: Library, whole: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers [N, K] int8 -> panels [ceil(N / 16), ceil(K / 4), 16, 4] and 128 times their sums [N] int32, both
    padded to whole panels."""
    whole = whole.contiguous()
    n, k = whole.shape
    panels = whole.new_empty(-(-n // PANEL), -(-k // 4), PANEL, 4)
    offsets = torch.empty(len(panels) * PANEL, dtype=torch.int32)
    function = library.function("ternvl_pack_int8", Pointer, Int64, Int64, Pointer, Pointer, Int)
    function(whole.data_ptr(), n, k, panels.data_ptr(), offsets.data_ptr(), torch.get_num_threads())
    return panels, offsets


def pack_int4(library: Library, whole: Tensor, scales: Tensor) -> Tensor:
    """Whole numbers [N, K] int8 from -8 to 7 and scales [N, G] bfloat16 -> panels, bytes [ceil(N / 16), G, 288]."""
    whole, scales = whole.contiguous(), scales.contiguous()
    n, k = whole.shape
    panels = torch.empty(-(-n // PANEL), scales.shape[1], 2 * PANEL + 16 * PANEL, dtype=torch.uint8)
    function = library.function("ternvl_pack_int4", Pointer, Pointer, Int64, Int64, Pointer, Int)
    function(whole.data_ptr(), scales.data_ptr(), n, k, panels.data_ptr(), torch.get_num_threads())
    return panels


def linear(library: Library, x: Tensor, panels: Tensor, n: int, bias: Tensor | None = None) -> Tensor:
    """x [M, K] and bias [N] float32, panels of `n` outputs -> [M, N] float32: rows whose bits nothing else decides."""
    m, k = x.shape
    x = x if x.stride(1) == 1 and x.stride(0) >= k else x.contiguous()
    out = x.new_empty(m, n)
    function = library.function(
        "ternvl_linear", Pointer, Int64, Int64, Int64, Pointer, Int, Int64, Pointer, Pointer, Int
    )
    shift = None if bias is None else bias.data_ptr()
    size, threads = panels.itemsize, torch.get_num_threads()
    function(x.data_ptr(), m, k, x.stride(0), panels.data_ptr(), size, n, shift, out.data_ptr(), threads)
    return out


def gelu(library: Library, x: Tensor) -> Tensor:
    """The exact GELU, float32, any shape."""
    x = x.contiguous()
    out = torch.empty_like(x)
    function = library.function("ternvl_gelu", Pointer, Pointer, Int64, Int)
    function(x.data_ptr(), out.data_ptr(), x.numel(), torch.get_num_threads())
    return out
