"""Which linear layers an adapter may change, in the words of the command line."""

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
"""Ends of module names by part of the model: those that the official training code adapts, and the output head, which
has to learn where answers need tokens that the model has hardly ever said."""
