"""Weights in panels, the order in which a product reads them: packed by a native kernel, or by torch.

A panel is 16 outputs, so that a vector holds the same input of neighbouring outputs. The last panel is padded with
zeros. Packing only moves values, so both ways give the same bits.

Shapes: N outputs, K inputs, G groups of 32 inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ternvl.kernels.loader import PACK_LINEAR, Int, Int64, Library, Pointer, library

PANEL = 16
"""Outputs of a panel."""
GROUP = 32
"""Inputs of an output that share a scale, where weights have 4 bits."""
_FLOATS = 2 * 4 * PANEL
"""The bytes of a group's scales and offsets, where both are float32."""
_INT4_SCALES, _INT4_BYTES = 2 * PANEL, 2 * PANEL + PANEL * GROUP // 2


def pack(weight: Tensor) -> Tensor:
    """weight [N, K] -> panels [ceil(N / 16), K, 16] of the same type."""
    loaded = _library_for(weight) if weight.dtype in (torch.float32, torch.bfloat16) else None
    if loaded is None:
        return pack_reference(weight)
    weight = weight.contiguous()
    n, k = weight.shape
    panels = weight.new_empty(-(-n // PANEL), k, PANEL)
    function = loaded.function("ternvl_pack_linear", *PACK_LINEAR)
    function(weight.data_ptr(), weight.itemsize, n, k, panels.data_ptr(), torch.get_num_threads())
    return panels


def pack_int8(whole: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers [N, K] int8 -> panels [ceil(N / 16), ceil(K / 4), 16, 4], and 128 times the sum of each output's
    weights, int32, padded to whole panels."""
    loaded = _library_for(whole)
    if loaded is None:
        return pack_int8_reference(whole)
    whole = whole.contiguous()
    n, k = whole.shape
    panels = whole.new_empty(-(-n // PANEL), -(-k // 4), PANEL, 4)
    offsets = torch.empty(len(panels) * PANEL, dtype=torch.int32)
    function = loaded.function("ternvl_pack_int8", Pointer, Int64, Int64, Pointer, Pointer, Int)
    function(whole.data_ptr(), n, k, panels.data_ptr(), offsets.data_ptr(), torch.get_num_threads())
    return panels, offsets


def pack_int4(whole: Tensor, scales: Tensor) -> Tensor:
    """Whole numbers [N, K] int8 from -8 to 7 and scales [N, G] bfloat16 -> panels, bytes [ceil(N / 16), G, 288]."""
    loaded = _library_for(whole)
    if loaded is None:
        return pack_int4_reference(whole, scales)
    whole, scales = whole.contiguous(), scales.contiguous()
    n, k = whole.shape
    panels = torch.empty(-(-n // PANEL), scales.shape[1], _INT4_BYTES, dtype=torch.uint8)
    function = loaded.function("ternvl_pack_int4", Pointer, Pointer, Int64, Int64, Pointer, Int)
    function(whole.data_ptr(), scales.data_ptr(), n, k, panels.data_ptr(), torch.get_num_threads())
    return panels


def pack_affine4(whole: Tensor, scales: Tensor, offsets: Tensor) -> Tensor:
    """Numbers [N, 32 G] int8 from 0 to 15, scales and offsets [N, G] float32, N whole panels -> panels, bytes
    [N / 16, G, 384]."""
    groups = scales.shape[1]
    floats = torch.stack([scales, offsets]).view(2, -1, PANEL, groups).permute(1, 3, 0, 2).contiguous()
    return torch.cat([floats.flatten(2).view(torch.uint8), _runs(whole, groups)], dim=2)


def unpack_affine4(panels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Panels -> what `pack_affine4` was given."""
    floats = panels[..., :_FLOATS].contiguous().view(torch.float32).unflatten(2, (2, PANEL))
    scales, offsets = floats.permute(2, 0, 3, 1).flatten(1, 2)
    return _whole(panels[..., _FLOATS:]), scales, offsets


def pack_reference(weight: Tensor) -> Tensor:
    """`pack` in plain torch, for any type and device."""
    n, k = weight.shape
    padded = F.pad(weight, (0, 0, 0, -n % PANEL))
    return padded.view(-1, PANEL, k).transpose(1, 2).contiguous()


def pack_int8_reference(whole: Tensor) -> tuple[Tensor, Tensor]:
    """`pack_int8` in plain torch."""
    n, k = whole.shape
    padded = F.pad(whole, (0, -k % 4, 0, -n % PANEL))
    panels = padded.view(-1, PANEL, padded.shape[1] // 4, 4).transpose(1, 2).contiguous()
    return panels, 128 * padded.sum(dim=1, dtype=torch.int32)


def pack_int4_reference(whole: Tensor, scales: Tensor) -> Tensor:
    """`pack_int4` in plain torch."""
    n, k = whole.shape
    groups = scales.shape[1]
    runs = _runs(F.pad(whole, (0, groups * GROUP - k, 0, -n % PANEL)) + 8, groups)
    shorts = F.pad(scales, (0, 0, 0, -n % PANEL)).view(-1, PANEL, groups).transpose(1, 2).contiguous()
    return torch.cat([shorts.view(torch.uint8), runs], dim=2)


def unpack(panels: Tensor, n: int) -> Tensor:
    """Panels that `pack` made of `n` outputs -> weight [N, K]."""
    return panels.transpose(1, 2).flatten(0, 1)[:n]


def unpack_int8(panels: Tensor, k: int) -> Tensor:
    """Panels that `pack_int8` made of `k` inputs -> whole numbers [N padded to whole panels, K]."""
    return panels.transpose(1, 2).flatten(2).flatten(0, 1)[:, :k]


def unpack_int4(panels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Panels that `pack_int4` made of `k` inputs -> whole numbers [N, K] int8 and scales [N, G] bfloat16, where N is
    padded to whole panels."""
    scales = panels[..., :_INT4_SCALES].contiguous().view(torch.bfloat16).transpose(1, 2).flatten(0, 1)
    return _whole(panels[..., _INT4_SCALES:])[:, :k] - 8, scales


def _runs(whole: Tensor, groups: int) -> Tensor:
    """Numbers [N, 32 G] from 0 to 15 -> the bytes that hold two each, [N / 16, G, 256]."""
    split = whole.view(-1, PANEL, groups, 4, 2, 4).permute(0, 2, 3, 1, 4, 5)  # [panels, G, runs, 16, half, 4]
    halves = split.to(torch.uint8)
    return (halves[..., 0, :] | halves[..., 1, :] << 4).flatten(2)


def _whole(runs: Tensor) -> Tensor:
    """The inverse of `_runs`: [N, 32 G] int8."""
    split = runs.reshape(*runs.shape[:2], 4, PANEL, 4)  # the bytes of a run, output by output
    both = torch.stack([split & 15, split >> 4], dim=4).to(torch.int8)  # [panels, G, runs, 16, half, 4]
    return both.permute(0, 3, 1, 2, 4, 5).flatten(2).flatten(0, 1)


def _library_for(x: Tensor) -> Library | None:
    return library() if x.is_cpu else None
