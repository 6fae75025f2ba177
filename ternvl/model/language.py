"""The Qwen2.5 decoder, over a flat batch of tokens.

Source: Qwen2 in transformers (`modeling_qwen2.py`). Module names are those of the official checkpoint. The model has
no notion of sequences: each token has a position, and an `Attention` decides which tokens it sees.

Shapes: T tokens, C hidden size, H query heads, K key-value heads, D head size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ternvl.config import LanguageConfig
from ternvl.model.attention import Attention


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32 and scaled in the weights' type."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


def rotary_table(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Compute the cosine and sine of each token's rotation, in float32: positions [T] -> two [T, 1, D]."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64, device=positions.device).float() / head_dim
    angles = positions.float()[:, None] * (1.0 / theta**exponents)  # [T, D / 2]
    # Computed in float64, because float32 libraries round the last elements of an array differently from the others.
    angles = torch.cat([angles, angles], dim=-1).unsqueeze(1).double()
    return angles.cos().float(), angles.sin().float()


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves of each head: x [T, heads, D] -> the same shape."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class SelfAttention(nn.Module):
    """Grouped-query attention. The q, k and v projections have a bias, o has none."""

    def __init__(self, config: LanguageConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        kv_size = config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.num_heads * config.head_dim)
        self.k_proj = nn.Linear(config.hidden_size, kv_size)
        self.v_proj = nn.Linear(config.hidden_size, kv_size)
        self.o_proj = nn.Linear(config.num_heads * config.head_dim, config.hidden_size, bias=False)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], attention: Attention) -> Tensor:
        """[T, C] -> [T, C]."""
        heads = (x.shape[0], -1, self.head_dim)
        q = apply_rotary(self.q_proj(x).view(heads), *rotary)  # [T, H, D]
        k = apply_rotary(self.k_proj(x).view(heads), *rotary)  # [T, K, D]
        v = self.v_proj(x).view(heads)  # [T, K, D]
        out = attention(self.layer, q, k, v)
        return self.o_proj(out.reshape(x.shape[0], -1))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """The SwiGLU feed-forward layer."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.activation = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    """Pre-norm attention, then pre-norm MLP."""

    def __init__(self, config: LanguageConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], attention: Attention) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotary, attention)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """The stack of decoder layers: embeddings to final hidden states."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config = config
        weight = torch.empty(config.vocab_size, config.hidden_size)
        if not weight.is_meta:  # on meta it does nothing but import torch's compiler, which takes a second
            nn.init.normal_(weight)
        self.embed_tokens = nn.Embedding.from_pretrained(weight, freeze=False)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, embeddings: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        """embeddings [T, C], positions [T] -> [T, C]."""
        cos, sin = self.rotary(positions)
        rotary = (cos.to(embeddings.dtype), sin.to(embeddings.dtype))
        return self.norm(self.run_layers(embeddings, rotary, attention))  # type: ignore[no-any-return]

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cosine and sine for positions [T]: two [T, 1, D] in float32."""
        return rotary_table(positions, self.config.head_dim, self.config.rope_theta)

    def run_layers(self, x: Tensor, rotary: tuple[Tensor, Tensor], attention: Attention) -> Tensor:
        """Run all layers: [T, C] -> [T, C]. `rotary` is the result of `rotary_table`, converted to the type of x."""
        for layer in self.layers:
            x = layer(x, rotary, attention)
        return x


class LanguageModel(nn.Module):
    """The decoder and its output head. The head is a separate matrix unless a checkpoint ties it to the embeddings."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def is_tied(self) -> bool:
        """Whether a checkpoint has tied the output head to the embeddings."""
        return self.lm_head.weight is self.model.embed_tokens.weight
