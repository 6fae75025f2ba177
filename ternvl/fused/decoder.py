"""The decoder in stages: the replacements of the layers of `model/language.py`.

Shapes: T tokens, C hidden size, H query heads, K key-value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

import torch
from torch import Tensor, nn

from ternvl.config import LanguageConfig
from ternvl.fused.adapters import AdaptedStages, FusedModule, Part
from ternvl.fused.packed import WideEmbedding
from ternvl.fused.stages import norm_of, stage_of
from ternvl.kernels.decoder import LAYER, NativeDecoder
from ternvl.kernels.loader import library
from ternvl.kernels.norm import rms_norm
from ternvl.kernels.rotary import rotate
from ternvl.kernels.stage import Stage
from ternvl.kernels.stage_types import After
from ternvl.model.attention import Attention
from ternvl.model.kv_cache import PagedAttention
from ternvl.model.language import Decoder, DecoderLayer, RMSNorm

_LEAST_ANGLES = 1024
"""The number of positions in the first table of angles."""


class FusedDecoderLayer(FusedModule):
    """A `DecoderLayer` in four stages."""

    STAGES = LAYER
    qkv: Stage
    o: Stage
    gate_up: Stage
    down: Stage

    def __init__(self, config: LanguageConfig, layer: int, **stages: Stage) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        for name in self.STAGES:
            setattr(self, name, stages[name])

    @classmethod
    def from_layer(cls, config: LanguageConfig, layer: int, module: DecoderLayer) -> FusedDecoderLayer:
        """Pack the weights of a plain layer with the index `layer`."""
        attention, mlp = module.self_attn, module.mlp
        return cls(
            config,
            layer,
            qkv=stage_of([attention.q_proj, attention.k_proj, attention.v_proj], norm=norm_of(module.input_layernorm)),
            o=stage_of([attention.o_proj]),
            gate_up=stage_of([mlp.gate_proj, mlp.up_proj], norm_of(module.post_attention_layernorm), After.SWIGLU),
            down=stage_of([mlp.down_proj]),
        )

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], attention: Attention) -> Tensor:
        """[T, C] -> [T, C]."""
        heads = self.run("qkv", x).view(x.shape[0], -1, self.head_dim)  # [T, H + 2 K, D]
        rotate(heads[:, : self.num_heads + self.num_kv_heads], *rotary)
        q, k, v = heads.split([self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=1)
        x = self.run("o", attention(self.layer, q, k, v).flatten(1), x)
        return self.run("down", self.run("gate_up", x), x)

    def parts(self) -> dict[str, list[Part]]:
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        width, half = self.down.out_features, self.gate_up.num_outputs
        return {
            "qkv": [Part("self_attn.q_proj", q), Part("self_attn.k_proj", kv), Part("self_attn.v_proj", kv)],
            "o": [Part("self_attn.o_proj", width)],
            "gate_up": [Part("mlp.gate_proj", half), Part("mlp.up_proj", half)],
            "down": [Part("mlp.down_proj", width)],
        }


class FusedDecoder(Decoder):
    """A `Decoder` of fused layers. With paged attention, one native call runs all layers."""

    def __init__(self, decoder: Decoder, layers: Iterable[FusedDecoderLayer], *, caches_in_int8: bool = False) -> None:
        """`caches_in_int8` says whether the guard found 8 bits sufficient for keys and values."""
        nn.Module.__init__(self)
        self.caches_in_int8 = caches_in_int8
        self.config, self.norm = decoder.config, FusedRMSNorm(decoder.norm)  # type: ignore[assignment]
        self.embed_tokens = WideEmbedding(decoder.embed_tokens)  # type: ignore[assignment]
        self.layers = nn.ModuleList(layers)
        self._angles: tuple[Tensor, Tensor] | None = None

    def run_layers(self, x: Tensor, rotary: tuple[Tensor, Tensor], attention: Attention) -> Tensor:
        """Run all layers: [T, C] -> [T, C]."""
        loaded = library() if x.is_cpu and x.dtype == torch.float32 else None
        if loaded is None or not isinstance(attention, PagedAttention):
            return super().run_layers(x, rotary, attention)
        cache = attention.cache
        return self.native.run(
            *(loaded, x, *rotary, cache.tensors, cache.block_size),
            *(attention.slots, attention.block_tables, attention.query_starts, attention.lengths),
            self.adapted.current(),
        )

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same values as `Decoder.rotary`, from a table that grows when needed."""
        needed = int(positions.max()) + 1
        if self._angles is None or len(self._angles[0]) < needed:
            self._angles = super().rotary(torch.arange(max(_LEAST_ANGLES, 2 ** (needed - 1).bit_length())))
        cos, sin = self._angles
        return cos[positions], sin[positions]

    @cached_property
    def adapted(self) -> AdaptedStages:
        """The adapters' targets in the stages of all layers."""
        return AdaptedStages((layer, stage) for layer in self.layers for stage in LAYER)  # type: ignore[misc]

    @cached_property
    def native(self) -> NativeDecoder:
        """All layers as one native call. It holds pointers to their tensors, which must not move."""
        language = self.config
        layers = [[getattr(layer, name) for name in LAYER] for layer in self.layers]
        sizes = {"heads": language.num_heads, "key_heads": language.num_kv_heads, "head_size": language.head_dim}
        return NativeDecoder(layers, **sizes)


class FusedRMSNorm(nn.Module):
    """An `RMSNorm` in one native call."""

    def __init__(self, norm: RMSNorm) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """[T, C] -> [T, C]."""
        return rms_norm(x, self.weight, self.eps)
