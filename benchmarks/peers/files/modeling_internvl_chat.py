"""The model class that transformers loads beside a checkpoint in the original layout.

The official file is on the hub alone; an exporter needs one. Here it is over this project's own vision tower and
transformers' decoder: the same tensors under the same names, and the attributes that optimum-intel asks for.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import GenerationMixin, PreTrainedModel, Qwen2ForCausalLM

from ternvl.config import LanguageConfig, ModelConfig, VisionConfig
from ternvl.model.vision import VisionModel, pixel_shuffle, projector

from .configuration_internvl_chat import InternVLChatConfig


def sizes(config: InternVLChatConfig) -> ModelConfig:
    """What the vision tower and the projector are built from."""
    vit, llm = config.vision_config, config.llm_config
    vision = VisionConfig(
        vit.hidden_size,
        vit.num_hidden_layers,
        vit.num_attention_heads,
        vit.intermediate_size,
        vit.image_size,
        vit.patch_size,
        vit.layer_norm_eps,
        vit.qkv_bias,
    )
    language = LanguageConfig(
        llm.hidden_size,
        llm.num_hidden_layers,
        llm.num_attention_heads,
        llm.num_key_value_heads,
        llm.intermediate_size,
        llm.vocab_size,
    )
    return ModelConfig(vision, language, config.downsample_ratio)


class InternVLChatModel(PreTrainedModel, GenerationMixin):
    """Vision tower, projector and decoder."""

    config_class = InternVLChatConfig
    main_input_name = "pixel_values"
    _supports_sdpa = True

    def __init__(self, config: InternVLChatConfig) -> None:
        super().__init__(config)
        model_config = sizes(config)
        self.vision_model = VisionModel(model_config.vision)
        for layer in self.vision_model.encoder.layers:
            layer.attn.use_flash_attn = False
        self.mlp1 = projector(model_config)
        self.language_model = Qwen2ForCausalLM(config.llm_config)
        self.downsample_ratio = config.downsample_ratio
        self.post_init()

    def extract_feature(self, pixel_values: Tensor) -> Tensor:
        """Tiles [N, 3, S, S] -> embeddings of their context tokens [N, M, C]."""
        return self.mlp1(pixel_shuffle(self.vision_model(pixel_values), self.downsample_ratio))

    def forward(self, pixel_values: Tensor, **others: Any) -> Tensor:
        """The exporter puts `extract_feature` in this place."""
        return self.extract_feature(pixel_values, **others)
