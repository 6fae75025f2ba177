"""InternViT and the path from its patches to the language model: vision tower, pixel shuffle, projector.

Source: OpenGVLab/InternVL, `modeling_intern_vit.py` and `modeling_internvl_chat.py`. Module names are those of the
official checkpoint, so its tensors load under their own names.

Shapes: N tiles, P patches of a tile, L = P + 1 (class token first), C hidden size, H heads, D head size,
G patches along a side, S side of a tile in pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ternvl.config import ModelConfig, VisionConfig


class VisionEmbeddings(nn.Module):
    """The embeddings of a tile: the class token, then the patches, with positions added."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.grid = config.grid
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.patch_embedding = nn.Conv2d(3, config.hidden_size, config.patch_size, config.patch_size)
        self.position_embedding = nn.Parameter(torch.zeros(1, config.num_patches + 1, config.hidden_size))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[N, 3, S, S] -> [N, L, C]."""
        patches = self.patch_embedding(pixel_values)  # [N, C, G, G]
        num_tiles, _, height, width = patches.shape
        patches = patches.flatten(2).transpose(1, 2)  # [N, P, C]
        class_token = self.class_embedding.expand(num_tiles, -1, -1)
        return torch.cat([class_token, patches], dim=1) + self._positions(height, width)

    def _positions(self, height: int, width: int) -> Tensor:
        """[1, L, C], interpolated in float32 as in the official code if the grid differs from the trained one."""
        if (height, width) == (self.grid, self.grid):
            return self.position_embedding
        class_position, patches = self.position_embedding[:, :1], self.position_embedding[:, 1:]
        square = patches.reshape(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)  # [1, C, G, G]
        resized = F.interpolate(square.float(), size=(height, width), mode="bicubic", align_corners=False)
        return torch.cat([class_position, resized.flatten(2).transpose(1, 2).to(patches.dtype)], dim=1)


class VisionAttention(nn.Module):
    """Full attention among the patches of one tile."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, C] -> [N, L, C]."""
        n, length, channels = x.shape
        qkv = self.qkv(x).reshape(n, length, 3, self.num_heads, channels // self.num_heads)  # [N, L, 3, H, D]
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [N, H, L, D]
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(n, length, channels))


class VisionMLP(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class VisionLayer(nn.Module):
    """A pre-norm block whose two branches are scaled per channel (layer scale)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.attn = VisionAttention(config)
        self.mlp = VisionMLP(config)
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.ls1 = nn.Parameter(torch.ones(config.hidden_size))
        self.ls2 = nn.Parameter(torch.ones(config.hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x)) * self.ls1
        return x + self.mlp(self.norm2(x)) * self.ls2


class VisionEncoder(nn.Module):
    """The stack of layers. There is no norm after the last one."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.num_layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class VisionModel(nn.Module):
    """The vision tower: tiles to patch features, without the class token."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        self.encoder = VisionEncoder(config)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[N, 3, S, S] -> [N, P, C]."""
        features: Tensor = self.encoder(self.embeddings(pixel_values))
        return features[:, 1:]


def pixel_shuffle(patches: Tensor, ratio: float) -> Tensor:
    """Fold each square of (1/ratio)^2 patches into one token, as `ps_version` v2 does.

    With ratio 0.5: `out[r, c] = concat(x[2r, 2c], x[2r, 2c+1], x[2r+1, 2c], x[2r+1, 2c+1])`, row-major.
    [N, P, C] -> [N, P * ratio^2, C / ratio^2].
    """
    n, num_patches, channels = patches.shape
    side, fold = int(num_patches**0.5), int(1 / ratio)
    square = patches.reshape(n, side // fold, fold, side // fold, fold, channels)  # rows, row in square, columns, ...
    folded = square.permute(0, 1, 3, 2, 4, 5)  # [N, rows, columns, fold, fold, C]
    return folded.reshape(n, (side // fold) ** 2, fold * fold * channels)


def projector(config: ModelConfig) -> nn.Sequential:
    """Make `mlp1`: folded patches [..., C / ratio^2] -> embeddings of the language model [..., hidden size]."""
    width = config.language.hidden_size
    return nn.Sequential(
        nn.LayerNorm(config.projector_input_size),
        nn.Linear(config.projector_input_size, width),
        nn.GELU(),
        nn.Linear(width, width),
    )
