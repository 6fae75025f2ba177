"""The vision tower and the projector in stages: the replacements of the layers of `model/vision.py`.

The scales of a layer's branches are multiplied into its weights.

Shapes: C hidden size, H heads, D head size; N tiles, L patches and class token, G patches along a side.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ternvl.config import VisionConfig
from ternvl.fused.adapters import FusedModule, Part
from ternvl.fused.stages import norm_of, stage_of
from ternvl.kernels.attention_int8 import BLOCK, tile_attention
from ternvl.kernels.stage import Stage
from ternvl.kernels.stage_formats import pack
from ternvl.kernels.stage_types import After, Layer
from ternvl.model.vision import VisionLayer


class FusedVisionLayer(FusedModule):
    """A `VisionLayer` in four stages."""

    STAGES = ("qkv", "proj", "fc1", "fc2")
    qkv: Stage
    proj: Stage
    fc1: Stage
    fc2: Stage
    ls1: Tensor
    ls2: Tensor
    """[C] each. The weights of `proj` and `fc2` already contain them; outputs of adapters still have to be scaled."""

    def __init__(
        self,
        config: VisionConfig,
        scales: tuple[Tensor, Tensor] | None = None,
        *,
        attends_in_int8: bool = False,
        **stages: Stage,
    ) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.can_attend_in_int8 = config.hidden_size // config.num_heads % BLOCK == 0
        self.attends_in_int8 = attends_in_int8
        for name, scale in zip(("ls1", "ls2"), scales or torch.empty(2, config.hidden_size), strict=True):
            self.register_buffer(name, scale.detach().float())
        for name in self.STAGES:
            setattr(self, name, stages[name])

    @classmethod
    def from_layer(cls, config: VisionConfig, module: VisionLayer) -> FusedVisionLayer:
        """Pack the weights of a plain layer."""
        return cls(
            config,
            (module.ls1, module.ls2),
            qkv=stage_of([module.attn.qkv], norm_of(module.norm1)),
            proj=stage_of([module.attn.proj], scale=module.ls1),
            fc1=stage_of([module.mlp.fc1], norm_of(module.norm2), After.GELU),
            fc2=stage_of([module.mlp.fc2], scale=module.ls2),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, C] -> [N, L, C]."""
        rows = x.flatten(0, 1)  # [N * L, C]
        attended = tile_attention(self.heads(x)) if self.attends_in_int8 else exact_attention(self.heads(x))
        rows = self.run("proj", attended.reshape(rows.shape), rows)
        return self.run("fc2", self.run("fc1", rows), rows).view_as(x)

    def parts(self) -> dict[str, list[Part]]:
        width = self.proj.out_features
        return {
            "qkv": [Part("attn.qkv", self.qkv.out_features)],
            "proj": [Part("attn.proj", width, self.ls1)],
            "fc1": [Part("mlp.fc1", self.fc1.out_features)],
            "fc2": [Part("mlp.fc2", width, self.ls2)],
        }

    def heads(self, x: Tensor) -> Tensor:
        """Compute queries, keys and values: [N, L, C] -> [N, L, 3, H, D]."""
        return self.run("qkv", x.flatten(0, 1)).view(*x.shape[:2], 3, self.num_heads, -1)


def exact_attention(qkv: Tensor) -> Tensor:
    """Attend among the patches of each tile in float32: [N, L, 3, H, D] -> [N, L, H, D]."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [N, H, L, D]
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


class FusedPatches(nn.Module):
    """The patch embedding, a convolution with non-overlapping patches, in one stage."""

    STAGES = ("product",)

    def __init__(self, config: VisionConfig, product: Stage) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.product = product

    @classmethod
    def from_conv(cls, config: VisionConfig, conv: nn.Conv2d) -> FusedPatches:
        """Pack the weights of the convolution in float32."""
        return cls(config, pack(Layer(conv.weight.float().flatten(1), conv.bias, None, After.NOTHING)))

    def forward(self, pixels: Tensor) -> Tensor:
        """[N, 3, S, S] -> [N, C, G, G]."""
        tiles, channels, height, width = pixels.shape
        size = self.patch_size
        rows, columns = height // size, width // size
        patches = pixels[:, :, : rows * size, : columns * size].reshape(tiles, channels, rows, size, columns, size)
        patches = patches.permute(0, 2, 4, 1, 3, 5).reshape(tiles * rows * columns, -1)  # [N * G * G, 3 * size * size]
        return self.product(patches).view(tiles, rows, columns, -1).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class FusedProjector(FusedModule):
    """The projector `mlp1` in two stages."""

    STAGES = ("fold", "out")

    def __init__(self, fold: Stage, out: Stage) -> None:
        super().__init__()
        self.fold, self.out = fold, out

    @classmethod
    def from_sequential(cls, mlp1: nn.Sequential) -> FusedProjector:
        """Pack the weights of `mlp1`, made by `projector`."""
        first, second = mlp1[1], mlp1[3]
        assert isinstance(first, nn.Linear)
        assert isinstance(second, nn.Linear)
        return cls(stage_of([first], norm_of(mlp1[0]), After.GELU), stage_of([second]))

    def forward(self, x: Tensor) -> Tensor:
        """[..., C / ratio^2] -> [..., hidden size]."""
        return self.run("out", self.run("fold", x.flatten(0, -2))).view(*x.shape[:-1], -1)

    def parts(self) -> dict[str, list[Part]]:
        return {"fold": [Part("1", self.fold.out_features)], "out": [Part("3", self.out.out_features)]}
