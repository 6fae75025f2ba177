"""The number formats of GGUF files: how many bytes a block of numbers has, and which numbers it stands for.

The computation is that of llama.cpp's `ggml-quants.c`, in float32 and in the same order, so the numbers are the same to
the bit. A block holds its numbers' low bits in halves: byte i has number i in its low and number i + half in its high
four bits.

Shapes: B blocks, each a row of bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class BlockFormat(NamedTuple):
    """A format of GGUF."""

    name: str
    block_size: int
    """The numbers of a block."""
    block_bytes: int
    decode: Callable[[Tensor], Tensor] | None = None
    """[B, block bytes] uint8 -> [B, block size] float32; None for plain numbers."""
    dtype: torch.dtype = torch.float32
    """The type of plain numbers."""
    split: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]] | None = None
    """Of formats whose numbers are scale * number + offset with numbers from 0 to 15: [B, block bytes] uint8 -> the
    numbers [B, block size] uint8, and for each 32 of them the scale and the offset, [B, block size / 32] float32."""


def _half(blocks: Tensor, start: int) -> Tensor:
    """Return the float16 at a byte of each block: [B, 1] float32."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16).float()


def _nibbles(packed: Tensor) -> Tensor:
    """[..., n] bytes -> [..., 2, n]: the low four bits, then the high ones."""
    return torch.stack([packed & 15, packed >> 4], dim=-2)


def _q8_0(blocks: Tensor) -> Tensor:
    return blocks[:, 2:].contiguous().view(torch.int8).float() * _half(blocks, 0)


def _q4_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).flatten(1).float() - 8)


def _split_q4_0(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scale = _half(blocks, 0)
    return _nibbles(blocks[:, 2:]).flatten(1), scale, -8 * scale


def _q4_1(blocks: Tensor) -> Tensor:
    numbers, scale, offset = _split_q4_1(blocks)
    return scale * numbers.float() + offset


def _split_q4_1(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _nibbles(blocks[:, 4:]).flatten(1), _half(blocks, 0), _half(blocks, 2)


def _q5_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_with_fifth_bits(blocks[:, 2:6], blocks[:, 6:]).float() - 16)


def _q5_1(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _with_fifth_bits(blocks[:, 4:8], blocks[:, 8:]).float() + _half(blocks, 2)


def _with_fifth_bits(fifth: Tensor, packed: Tensor) -> Tensor:
    """Numbers of 5 bits [B, 32]: bit i of the four bytes `fifth` [B, 4] is the highest of number i."""
    high = (fifth[:, :, None] >> torch.arange(8, dtype=torch.uint8)) & 1  # [B, 4, 8]
    return _nibbles(packed).flatten(1) | high.flatten(1) << 4


def _q5_k(blocks: Tensor) -> Tensor:
    """As Q4_K; bit g of byte i of 32 is the fifth of number i of group g."""
    _, scales, offsets = _split_q4_k(blocks)
    high = (blocks[:, None, 16:48] >> torch.arange(8, dtype=torch.uint8)[:, None]) & 1  # [B, 8, 32]
    numbers = _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).flatten(1, 2) | high << 4
    return (scales[..., None] * numbers.float() + offsets[..., None]).flatten(1)


def _q4_k(blocks: Tensor) -> Tensor:
    numbers, scales, offsets = _split_q4_k(blocks)
    return (scales[..., None] * numbers.view(-1, 8, 32).float() + offsets[..., None]).flatten(1)


def _split_q4_k(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eight groups of 32, each with a scale and a minimum of six bits."""
    low, middle, high = blocks[:, 4:16].view(-1, 3, 4).unbind(1)  # [B, 4] each
    scales = torch.cat([low & 63, (high & 15) | ((low >> 2) & 48)], dim=1).float()  # [B, 8]
    minima = torch.cat([middle & 63, (high >> 4) | ((middle >> 2) & 48)], dim=1).float()
    numbers = _nibbles(blocks[:, -128:].reshape(-1, 4, 32)).flatten(1)
    return numbers, _half(blocks, 0) * scales, -(_half(blocks, 2) * minima)


def _q6_k(blocks: Tensor) -> Tensor:
    """Sixteen groups of 16, each with a scale of eight bits; the upper two bits of the numbers stand apart."""
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 8, 32)
    packed = blocks[:, 128:192].reshape(-1, 2, 1, 32)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8).view(1, 1, 4, 1)
    high = ((packed >> shifts) & 3).reshape(-1, 8, 32)
    numbers = ((low | (high << 4)).float() - 32).reshape(-1, 16, 16)
    scales = blocks[:, 192:208].contiguous().view(torch.int8).float()
    return ((_half(blocks, 208) * scales)[..., None] * numbers).flatten(1)


FORMATS = {
    0: BlockFormat("F32", 1, 4),
    1: BlockFormat("F16", 1, 2, dtype=torch.float16),
    2: BlockFormat("Q4_0", 32, 18, _q4_0, split=_split_q4_0),
    3: BlockFormat("Q4_1", 32, 20, _q4_1, split=_split_q4_1),
    6: BlockFormat("Q5_0", 32, 22, _q5_0),
    7: BlockFormat("Q5_1", 32, 24, _q5_1),
    8: BlockFormat("Q8_0", 32, 34, _q8_0),
    12: BlockFormat("Q4_K", 256, 144, _q4_k, split=_split_q4_k),
    13: BlockFormat("Q5_K", 256, 176, _q5_k),
    14: BlockFormat("Q6_K", 256, 210, _q6_k),
    30: BlockFormat("BF16", 1, 2, dtype=torch.bfloat16),
}
"""By their numbers in files (`ggml.h`)."""
OTHERS = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS",
    18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32",
    27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
"""Formats that are refused by name."""
