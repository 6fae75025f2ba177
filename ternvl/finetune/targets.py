"""The linear layers that an adapter may change, by their names on the command line."""

from __future__ import annotations

TARGETS: dict[str, tuple[str, ...]] = {
    "language": (
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
        "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
    ),
    "head": ("language_model.lm_head",),
    "projector": ("mlp1.1", "mlp1.3"),
    "vision": ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"),
}  # fmt: skip
"""Suffixes of module names by part of the model: the layers that the official training code adapts, and the output
head, which must be trained if answers need tokens that the model has hardly ever generated."""
