"""Modules that replace a model's own modules without changing its weights' values.

They compute in float32. Each row or element of a result is bit-identical whatever else is in the batch.

Shapes: N outputs, K inputs; T tiles, C channels, S side of an image, P side of a patch, G = S / P.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ternvl.gguf.formats import FORMATS
from ternvl.kernels import panels, product


class PackedLinear(nn.Module):
    """A linear layer with its weights in panels, stored as float32 or bfloat16."""

    panels: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, storage: torch.dtype) -> None:
        """weight [N, K], bias [N]; `storage` is torch.float32 or torch.bfloat16."""
        super().__init__()
        assert storage in (torch.float32, torch.bfloat16), storage
        self.out_features, self.in_features = weight.shape
        self.register_buffer("panels", panels.pack(weight.detach().to(storage)))
        self.register_buffer("bias", None if bias is None else bias.detach().float().contiguous())

    @classmethod
    def from_linear(cls, linear: nn.Linear, storage: torch.dtype) -> PackedLinear:
        """Pack an `nn.Linear`. It is exact if `storage` can hold the weights' values."""
        return cls(linear.weight, linear.bias, storage)

    @property
    def weight(self) -> Tensor:
        """A copy of the weights [N, K] in their storage type."""
        return panels.unpack(self.panels, self.out_features)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] float32 with any strides -> [..., N] float32."""
        out = product.linear(x.reshape(-1, self.in_features), self.panels, self.out_features, self.bias)
        return out.view(*x.shape[:-1], self.out_features)


class PackedPatches(nn.Module):
    """A convolution with non-overlapping patches, computed by a packed linear layer over the patches."""

    def __init__(self, conv: nn.Conv2d, storage: torch.dtype) -> None:
        super().__init__()
        assert conv.kernel_size == conv.stride, conv
        assert conv.padding == (0, 0), conv
        self.patch_size = conv.kernel_size
        self.linear = PackedLinear(conv.weight.flatten(1), conv.bias, storage)

    def forward(self, pixels: Tensor) -> Tensor:
        """[T, 3, S, S] -> [T, C, G, G]."""
        tiles, channels, height, width = pixels.shape
        high, wide = self.patch_size
        rows, columns = height // high, width // wide
        patches = pixels[:, :, : rows * high, : columns * wide].reshape(tiles, channels, rows, high, columns, wide)
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3)  # [T, G, G, 3 * P * P]
        return self.linear(patches).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class WideEmbedding(nn.Module):
    """An embedding that keeps its storage type and returns float32."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.weight = embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        """ids [...] -> [..., C] float32."""
        return F.embedding(ids, self.weight).float()


class BlockEmbedding(nn.Module):
    """An embedding that keeps the blocks of a GGUF file and decodes the rows that are looked up, to float32."""

    blocks: Tensor
    """[rows, bytes of a row] uint8."""

    def __init__(self, blocks: Tensor, format: int) -> None:
        """`format` is a number of `FORMATS`, of a format that has blocks."""
        super().__init__()
        self.format = format
        self.register_buffer("blocks", blocks)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [...] -> [..., C] float32."""
        format = FORMATS[self.format]
        assert format.decode is not None, format.name
        rows = format.decode(self.blocks[ids.flatten()].view(-1, format.block_bytes))
        return rows.view(*ids.shape, -1)


class GELU(nn.Module):
    """The exact GELU."""

    def forward(self, x: Tensor) -> Tensor:
        """[...] -> [...] in float32."""
        return product.gelu(x)
