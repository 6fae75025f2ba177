"""Writes the `config.json` and `generation_config.json` of a model in the original layout."""

from __future__ import annotations

from typing import Any

from ternvl.config import OFFICIAL_SYSTEM_MESSAGE, LanguageConfig, ModelConfig, VisionConfig


def write(config: ModelConfig, *, dtype: str, tied: bool) -> dict[str, Any]:
    """Return `config.json` in the original layout, for tensors of type `dtype`; `tied` if no output head is written."""
    official = config.system_message == OFFICIAL_SYSTEM_MESSAGE
    return {
        "architectures": ["InternVLChatModel"],
        "downsample_ratio": config.downsample_ratio,
        "dynamic_image_size": True,
        "force_image_size": config.vision.image_size,
        "hidden_size": config.language.hidden_size,
        "llm_config": _write_language(config.language, dtype, tied),
        "max_dynamic_patch": config.max_dynamic_patch,
        "min_dynamic_patch": config.min_dynamic_patch,
        "model_type": "internvl_chat",
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": -1,
        "system_message": None if official else config.system_message,
        "template": "internvl2_5",
        "tie_word_embeddings": tied,
        "torch_dtype": dtype,
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "use_thumbnail": config.use_thumbnail,
        "vision_config": _write_vision(config.vision, dtype),
    }


def write_generation(config: ModelConfig) -> dict[str, Any]:
    """Return `generation_config.json`: the sampling defaults, under the names that transformers uses."""
    if config.defaults.get("temperature") == 0:
        return {"do_sample": False} | {key: value for key, value in config.defaults.items() if key != "temperature"}
    return {"do_sample": True, **config.defaults} if config.defaults else {}


def _write_language(language: LanguageConfig, dtype: str, tied: bool) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": language.hidden_size,
        "intermediate_size": language.intermediate_size,
        "max_position_embeddings": language.max_position_embeddings,
        "model_type": "qwen2",
        "num_attention_heads": language.num_heads,
        "num_hidden_layers": language.num_layers,
        "num_key_value_heads": language.num_kv_heads,
        "rms_norm_eps": language.rms_norm_eps,
        "rope_scaling": None,
        "rope_theta": language.rope_theta,
        "sliding_window": None,
        "tie_word_embeddings": tied,
        "torch_dtype": dtype,
        "use_sliding_window": False,
        "vocab_size": language.vocab_size,
    }


def _write_vision(vision: VisionConfig, dtype: str) -> dict[str, Any]:
    return {
        "architectures": ["InternVisionModel"],
        "hidden_act": "gelu",
        "hidden_size": vision.hidden_size,
        "image_size": vision.image_size,
        "intermediate_size": vision.intermediate_size,
        "layer_norm_eps": vision.layer_norm_eps,
        "model_type": "intern_vit_6b",
        "norm_type": "layer_norm",
        "num_attention_heads": vision.num_heads,
        "num_channels": 3,
        "num_hidden_layers": vision.num_layers,
        "patch_size": vision.patch_size,
        "qk_normalization": False,
        "qkv_bias": vision.qkv_bias,
        "torch_dtype": dtype,
    }
