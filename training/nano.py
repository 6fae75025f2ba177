"""The configuration of ternvl-nano: the InternVL3 architecture with six million parameters."""

from __future__ import annotations

import torch
from torch import nn

from ternvl.config import LanguageConfig, ModelConfig, VisionConfig
from ternvl.model.internvl import InternVL

SYSTEM_MESSAGE = "You are a helpful assistant."
VOCAB_SIZE = 2_048
CONFIG = ModelConfig(
    vision=VisionConfig(
        hidden_size=192, num_layers=5, num_heads=3, intermediate_size=768, image_size=112, patch_size=14
    ),
    language=LanguageConfig(
        hidden_size=256, num_layers=4, num_heads=4, num_kv_heads=2, intermediate_size=512, vocab_size=VOCAB_SIZE,
        rope_theta=10_000.0,
    ),
    max_dynamic_patch=4,
    system_message=SYSTEM_MESSAGE,
    defaults={"temperature": 0.0},
)  # fmt: skip


def build(seed: int = 0) -> InternVL:
    """Return a newly initialised model."""
    torch.manual_seed(seed)
    model = InternVL(CONFIG)
    for name, param in model.named_parameters():
        if "position_embedding" in name or "class_embedding" in name:
            nn.init.normal_(param, std=0.2)
        elif "embed_tokens" in name:
            nn.init.normal_(param, std=0.5)
        elif "lm_head" in name:
            nn.init.zeros_(param)
        elif param.ndim == 2:
            nn.init.normal_(param, std=0.5 * param.shape[1] ** -0.5)
        elif name.endswith(".bias"):
            nn.init.zeros_(param)
    for name, param in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight", "fc2.weight")):
            nn.init.zeros_(param)
    return model
