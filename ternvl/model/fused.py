"""The network's layers as stages: fewer and larger steps than `language.py` and `vision.py` have, of the same values.

What is here takes the place of layers of an `InternVL` from outside. Stages hold what were several matrices where these
have the same input: q, k and v, and gates and ups. The scales of a vision layer's branches are in its weights.

Shapes: T tokens, C hidden size, H query heads, K key-value heads, D head size; N tiles, L patches and class token.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ternvl.config import LanguageConfig, ModelConfig, VisionConfig
from ternvl.kernels.attention_int8 import BLOCK, tile_attention
from ternvl.kernels.decoder import LAYER, NativeDecoder
from ternvl.kernels.linear import WideEmbedding
from ternvl.kernels.loader import library
from ternvl.kernels.norm import rms_norm
from ternvl.kernels.rotary import rotate
from ternvl.kernels.stage import After, Format, Norm, Stage
from ternvl.kernels.stage_formats import Layer, pack
from ternvl.model.attention import Attention
from ternvl.model.fused_lora import FusedModule, Part
from ternvl.model.internvl import InternVL
from ternvl.model.kv_cache import PagedAttention
from ternvl.model.language import Decoder, DecoderLayer, RMSNorm
from ternvl.model.vision import VisionLayer

_LEAST_ANGLES = 1024
"""Positions that the first table of angles has."""


class FusedDecoderLayer(FusedModule):
    """A `DecoderLayer`."""

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
        attention, mlp = module.self_attn, module.mlp
        return cls(
            config,
            layer,
            qkv=_stage([attention.q_proj, attention.k_proj, attention.v_proj], norm=_norm(module.input_layernorm)),
            o=_stage([attention.o_proj]),
            gate_up=_stage([mlp.gate_proj, mlp.up_proj], _norm(module.post_attention_layernorm), After.SWIGLU),
            down=_stage([mlp.down_proj]),
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
    """A `Decoder` of fused layers. Over a paged cache all layers are one native call, save in runs with adapters."""

    def __init__(self, decoder: Decoder, layers: Iterable[FusedDecoderLayer], *, caches_in_int8: bool = False) -> None:
        """`caches_in_int8` says whether 8 bits are enough for its keys and values."""
        nn.Module.__init__(self)
        self.caches_in_int8 = caches_in_int8
        self.config, self.norm = decoder.config, FusedRMSNorm(decoder.norm)  # type: ignore[assignment]
        self.embed_tokens = WideEmbedding(decoder.embed_tokens)  # type: ignore[assignment]
        self.layers = nn.ModuleList(layers)
        self._angles: tuple[Tensor, Tensor] | None = None

    def run_layers(self, x: Tensor, rotary: tuple[Tensor, Tensor], attention: Attention) -> Tensor:
        """[T, C] -> [T, C]."""
        loaded = library() if x.is_cpu and x.dtype == torch.float32 else None
        is_adapted = any(layer.is_adapted for layer in self.layers)
        if loaded is None or is_adapted or not isinstance(attention, PagedAttention):
            return super().run_layers(x, rotary, attention)
        cache = attention.cache
        return self.native.run(
            *(loaded, x, *rotary, cache.tensors, cache.block_size),
            *(attention.slots, attention.block_tables, attention.query_starts, attention.lengths),
        )

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """As a `Decoder` has it, out of a table, which grows."""
        needed = int(positions.max()) + 1
        if self._angles is None or len(self._angles[0]) < needed:
            self._angles = super().rotary(torch.arange(max(_LEAST_ANGLES, 2 ** (needed - 1).bit_length())))
        cos, sin = self._angles
        return cos[positions], sin[positions]

    @cached_property
    def native(self) -> NativeDecoder:
        """All layers as one. It points into their tensors, which stay where they are."""
        language = self.config
        layers = [[getattr(layer, name) for name in LAYER] for layer in self.layers]
        sizes = {"heads": language.num_heads, "key_heads": language.num_kv_heads, "head_size": language.head_dim}
        return NativeDecoder(layers, **sizes)


class FusedRMSNorm(nn.Module):
    """An `RMSNorm` in one call."""

    def __init__(self, norm: RMSNorm) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """[T, C] -> [T, C]."""
        return rms_norm(x, self.weight, self.eps)


class FusedVisionLayer(FusedModule):
    """A `VisionLayer`."""

    STAGES = ("qkv", "proj", "fc1", "fc2")
    qkv: Stage
    proj: Stage
    fc1: Stage
    fc2: Stage
    ls1: Tensor
    ls2: Tensor
    """[C] each, which the weights of `proj` and `fc2` hold already; what adapters add to these is not scaled yet."""

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
        return cls(
            config,
            (module.ls1, module.ls2),
            qkv=_stage([module.attn.qkv], _norm(module.norm1)),
            proj=_stage([module.attn.proj], scale=module.ls1),
            fc1=_stage([module.mlp.fc1], _norm(module.norm2), After.GELU),
            fc2=_stage([module.mlp.fc2], scale=module.ls2),
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
        """[N, L, C] -> queries, keys and values [N, L, 3, H, D]."""
        return self.run("qkv", x.flatten(0, 1)).view(*x.shape[:2], 3, self.num_heads, -1)


def exact_attention(qkv: Tensor) -> Tensor:
    """Attention among the patches of each tile: [N, L, 3, H, D] -> [N, L, H, D]."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [N, H, L, D]
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


class FusedPatches(nn.Module):
    """The patch embedding, a convolution whose patches do not overlap."""

    STAGES = ("product",)

    def __init__(self, config: VisionConfig, product: Stage) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.product = product

    @classmethod
    def from_conv(cls, config: VisionConfig, conv: nn.Conv2d) -> FusedPatches:
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
    """`mlp1`."""

    STAGES = ("fold", "out")

    def __init__(self, fold: Stage, out: Stage) -> None:
        super().__init__()
        self.fold, self.out = fold, out

    @classmethod
    def from_sequential(cls, mlp1: nn.Sequential) -> FusedProjector:
        first, second = mlp1[1], mlp1[3]
        assert isinstance(first, nn.Linear)
        assert isinstance(second, nn.Linear)
        return cls(_stage([first], _norm(mlp1[0]), After.GELU), _stage([second]))

    def forward(self, x: Tensor) -> Tensor:
        """[..., C / ratio^2] -> [..., hidden size]."""
        return self.run("out", self.run("fold", x.flatten(0, -2))).view(*x.shape[:-1], -1)

    def parts(self) -> dict[str, list[Part]]:
        return {"fold": [Part("1", self.fold.out_features)], "out": [Part("3", self.out.out_features)]}


def fuse(model: InternVL) -> None:
    """Replace the layers of a plain model on the CPU by stages of the same weights, in place."""
    fuse_language(model)
    vision, config = model.vision_model, model.config.vision
    patches = FusedPatches.from_conv(config, vision.embeddings.patch_embedding)
    vision.embeddings.patch_embedding = patches  # type: ignore[assignment]
    for i, layer in enumerate(vision.encoder.layers):
        vision.encoder.layers[i] = FusedVisionLayer.from_layer(config, layer)  # type: ignore[arg-type]
    model.mlp1 = FusedProjector.from_sequential(model.mlp1)  # type: ignore[assignment]
    _widen(model)


def fuse_language(model: InternVL) -> None:
    """Replace the decoder's layers, its head and its embedding alone."""
    language, config = model.language_model, model.config.language
    layers = enumerate(language.model.layers)
    fused = [FusedDecoderLayer.from_layer(config, i, layer) for i, layer in layers]  # type: ignore[arg-type]
    language.model = FusedDecoder(language.model, fused)
    head: nn.Linear = language.lm_head
    language.lm_head = _stage([head])  # type: ignore[assignment]


def assemble(
    config: ModelConfig,
    stages: dict[str, Stage],
    rest: dict[str, Tensor],
    *,
    int8_attention: Collection[str],
    int8_cache: bool,
) -> InternVL:
    """A fused model of stages by their names in it, and of its other tensors. `int8_attention` names the vision layers
    that attend in 8 bits, `int8_cache` says whether these are enough for keys and values, too."""
    with torch.device("meta"):
        model = InternVL(config)
    vision, language = model.vision_model, model.language_model

    def of(kind: type, path: str) -> dict[str, Stage]:
        return {name: stages[f"{path}.{name}"] for name in kind.STAGES}  # type: ignore[attr-defined]

    patches = "vision_model.embeddings.patch_embedding"
    vision.embeddings.patch_embedding = FusedPatches(config.vision, **of(FusedPatches, patches))  # type: ignore[assignment]
    for i in range(config.vision.num_layers):
        path = f"vision_model.encoder.layers.{i}"
        vision.encoder.layers[i] = FusedVisionLayer(
            config.vision, None, attends_in_int8=path in int8_attention, **of(FusedVisionLayer, path)
        )
    model.mlp1 = FusedProjector(**of(FusedProjector, "mlp1"))  # type: ignore[assignment]
    layers = [
        FusedDecoderLayer(config.language, i, **of(FusedDecoderLayer, f"language_model.model.layers.{i}"))
        for i in range(config.language.num_layers)
    ]
    language.model = FusedDecoder(language.model, layers, caches_in_int8=int8_cache)
    language.lm_head = stages["language_model.lm_head"]  # type: ignore[assignment]
    own = model.state_dict().keys() - {
        f"{path}.{name}" for path, stage in stages.items() for name in stage.state_dict()
    }
    assert own == rest.keys(), own ^ rest.keys()
    model.load_state_dict(rest, assign=True, strict=False)
    return model.requires_grad_(False).eval()


def caches_in_int8(model: InternVL) -> bool:
    """Whether 8 bits have been found enough for a model's keys and values."""
    decoder = model.language_model.model
    return isinstance(decoder, FusedDecoder) and decoder.caches_in_int8


def is_quantized(model: nn.Module) -> bool:
    """Whether a stage of a model has weights of 8 or 4 bits."""
    return any(isinstance(module, Stage) and module.format in (Format.INT8, Format.INT4) for module in model.modules())


def _stage(
    linears: list[nn.Linear], norm: Norm | None = None, after: After = After.NOTHING, scale: Tensor | None = None
) -> Stage:
    weight = torch.cat([linear.weight for linear in linears]) if len(linears) > 1 else linears[0].weight
    biases = [linear.bias for linear in linears]
    bias = None if biases[0] is None else torch.cat([each.float() for each in biases])
    if scale is not None:
        weight = weight.float() * scale.float()[:, None]
        bias = None if bias is None else bias * scale.float()
    return pack(Layer(weight.to(torch.float32) if weight.dtype == torch.float16 else weight, bias, norm, after))


def _norm(module: nn.Module) -> Norm:
    assert isinstance(module, RMSNorm | nn.LayerNorm)
    bias = None if isinstance(module, RMSNorm) else module.bias
    return Norm(module.weight, bias, module.eps)


def _widen(model: nn.Module) -> None:
    """What is left of a model, outside stages and embeddings, in float32."""
    for module in model.modules():
        if not isinstance(module, WideEmbedding):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.float()
