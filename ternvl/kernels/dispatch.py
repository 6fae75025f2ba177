"""The one place that picks between a kernel and its reference. Signatures are those of `reference.py`."""

from __future__ import annotations

from torch import Tensor

from ternvl.kernels import native, reference
from ternvl.kernels.loader import library


def available() -> bool:
    """Whether the compiled kernels serve. Raises ConfigError for an environment variable that cannot be."""
    return library() is not None


def pack(weight: Tensor) -> Tensor:
    """weight [N, K], float32 or bfloat16 -> panels of the same type."""
    loaded = library()
    return reference.pack(weight) if loaded is None else native.pack(loaded, weight)


def pack_int8(whole: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers [N, K] int8 -> panels [ceil(N / 16), ceil(K / 4), 16, 4] and `Stage.offsets` [N] int32."""
    loaded = library()
    return reference.pack_int8(whole) if loaded is None else native.pack_int8(loaded, whole)


def pack_int4(whole: Tensor, scales: Tensor) -> Tensor:
    """Whole numbers [N, K] int8 from -8 to 7 and scales [N, G] bfloat16 -> panels, bytes [ceil(N / 16), G, 288]."""
    loaded = library()
    return reference.pack_int4(whole, scales) if loaded is None else native.pack_int4(loaded, whole, scales)


def linear(x: Tensor, panels: Tensor, n: int, bias: Tensor | None = None) -> Tensor:
    """x [M, K] and bias [N] float32, panels of `n` outputs -> [M, N] float32."""
    loaded = library()
    return reference.linear(x, panels, n, bias) if loaded is None else native.linear(loaded, x, panels, n, bias)


def gelu(x: Tensor) -> Tensor:
    """The exact GELU, float32, any shape."""
    loaded = library()
    return reference.gelu(x) if loaded is None else native.gelu(loaded, x)
