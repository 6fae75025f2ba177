"""The configuration files of a checkpoint, in every layout."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ternvl.checkpoint.source import load_config
from ternvl.config import OFFICIAL_SYSTEM_MESSAGE, LanguageConfig, ModelConfig, VisionConfig
from ternvl.errors import CheckpointError
from tests.checkpoint import hf

SIZES = hf.SIZES[1]
EXPECTED = ModelConfig(
    vision=VisionConfig(48, 3, 3, 64, image_size=56, patch_size=14, layer_norm_eps=1e-6, qkv_bias=False),
    language=LanguageConfig(64, 3, 8, 1, 96, 211, rms_norm_eps=1e-6, rope_theta=1e6, max_position_embeddings=32_768),
    dtype="bfloat16",
)


def original(folder: Path, change: dict[str, Any] | None = None) -> Path:
    return put(folder, hf.original_config(SIZES), change)


def native(folder: Path, change: dict[str, Any] | None = None) -> Path:
    config = hf.build(SIZES).config.to_dict() | {"architectures": ["InternVLForConditionalGeneration"]}
    return put(folder, config, change)


def put(folder: Path, config: dict[str, Any], change: dict[str, Any] | None) -> Path:
    """`change` has keys such as "llm_config.hidden_act"; a value of ... removes the key."""
    for path, value in (change or {}).items():
        *sections, key = path.split(".")
        place = config
        for section in sections:
            place = place[section]
        place[key] = value
        if value is ...:
            del place[key]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_original_layout(tmp_path: Path) -> None:
    assert load_config(original(tmp_path)) == EXPECTED


def test_the_native_layout_of_transformers_5_and_4(tmp_path: Path) -> None:
    """Here the newer layout names no type, since transformers saves it with the weights; the older one says float32."""
    expected = dataclasses.replace(EXPECTED, dtype="float32")
    assert load_config(native(tmp_path, {"dtype": ...})) == expected
    (tmp_path / "config.json").write_text(json.dumps(hf.old_config(SIZES)))
    assert load_config(tmp_path) == expected


def test_the_system_message(tmp_path: Path) -> None:
    assert load_config(original(tmp_path, {"system_message": None})).system_message == OFFICIAL_SYSTEM_MESSAGE
    assert load_config(original(tmp_path, {"system_message": ...})).system_message == OFFICIAL_SYSTEM_MESSAGE
    assert load_config(original(tmp_path, {"system_message": "Be brief."})).system_message == "Be brief."


@pytest.mark.parametrize(
    ("generation", "defaults"),
    [
        (None, {}),
        ({"eos_token_id": 151645}, {}),
        ({"do_sample": False, "temperature": 0.7}, {"temperature": 0.0}),
        (
            {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 40, "repetition_penalty": 1.1},
            {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "repetition_penalty": 1.1},
        ),
    ],
)
def test_sampling_defaults(tmp_path: Path, generation: dict | None, defaults: dict) -> None:
    original(tmp_path)
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert load_config(tmp_path).defaults == defaults


@pytest.mark.parametrize(
    "rope_scaling",
    [None, {"type": "dynamic", "factor": 2.0}, {"rope_type": "dynamic", "factor": 2.0}, {"rope_type": "default"}],
)
def test_rope_scaling_that_changes_nothing(tmp_path: Path, rope_scaling: dict | None) -> None:
    assert load_config(original(tmp_path, {"llm_config.rope_scaling": rope_scaling})) == EXPECTED


def test_a_tied_head_needs_a_flag(tmp_path: Path) -> None:
    assert not load_config(native(tmp_path, {"tie_word_embeddings": ...})).language.tie_word_embeddings
    assert load_config(native(tmp_path, {"tie_word_embeddings": True})).language.tie_word_embeddings
    assert load_config(original(tmp_path, {"llm_config.tie_word_embeddings": True})).language.tie_word_embeddings


@pytest.mark.parametrize(
    ("layout", "key", "value", "words"),
    [
        (original, "architectures", ["LlavaForConditionalGeneration"], "LlavaForConditionalGeneration"),
        (original, "architectures", [], "internvl_chat_2"),
        (original, "quantization_config", {"quant_method": "gptq"}, "quantization_config"),
        (original, "select_layer", -4, "select_layer -4"),
        (original, "ps_version", "v1", "ps_version 'v1'"),
        (original, "ps_version", ..., "ps_version 'v1'"),
        (original, "template", "Hermes-2", "template 'Hermes-2'"),
        (original, "pad2square", True, "pad2square True"),
        (original, "use_llm_lora", 16, "use_llm_lora 16"),
        (original, "use_backbone_lora", 16, "use_backbone_lora 16"),
        (original, "downsample_ratio", 0.3, "downsample_ratio 0.3"),
        (original, "force_image_size", 448, "force_image_size 448"),
        (original, "torch_dtype", "int8", "torch_dtype 'int8'"),
        (original, "system_message", 5, "system_message must be a string or null, but is 5"),
        (original, "use_thumbnail", "yes", "use_thumbnail must be true or false, but is 'yes'"),
        (original, "min_dynamic_patch", 13, "min_dynamic_patch 13 is above max_dynamic_patch 12"),
        (original, "llm_config", ..., "needs an object under 'llm_config'"),
        (original, "llm_config.architectures", ["InternLM2ForCausalLM"], "InternLM2ForCausalLM"),
        (original, "llm_config.architectures", ["LlamaForCausalLM"], "LlamaForCausalLM"),
        (original, "llm_config.model_type", "qwen3", "model_type 'qwen3'"),
        (original, "llm_config.hidden_act", "gelu", "hidden_act 'gelu'"),
        (original, "llm_config.head_dim", 128, "head_dim 128"),
        (original, "llm_config.use_sliding_window", True, "use_sliding_window True"),
        (original, "llm_config.rope_scaling", {"type": "linear", "factor": 2.0}, "type 'linear'"),
        (original, "llm_config.rope_scaling", {"rope_type": "yarn", "factor": 4.0}, "rope_type 'yarn'"),
        (original, "llm_config.hidden_size", ..., "hidden_size must be a positive whole number, but is None"),
        (original, "llm_config.vocab_size", "many", "vocab_size must be a positive whole number, but is 'many'"),
        (original, "llm_config.num_hidden_layers", True, "num_hidden_layers"),
        (original, "llm_config.rms_norm_eps", None, "rms_norm_eps must be a number"),
        (original, "llm_config.num_key_value_heads", 3, "num_attention_heads 8 cannot be divided by"),
        (original, "llm_config.num_attention_heads", 64, "head size 1 cannot be divided by two halves"),
        (original, "vision_config.norm_type", "rms_norm", "InternViT-6B, which is not implemented"),
        (original, "vision_config.norm_type", ..., "InternViT-6B, which is not implemented"),
        (original, "vision_config.qk_normalization", True, "InternViT-6B, which is not implemented"),
        (original, "vision_config.norm_type", "group_norm", "norm_type 'group_norm'"),
        (original, "llm_config.num_hidden_layers", 10**9, "num_hidden_layers must be at most 1000"),
        (original, "vision_config.num_hidden_layers", 10**9, "num_hidden_layers must be at most 1000"),
        (original, "llm_config.vocab_size", 10**18, "vocab_size must be at most 16777216"),
        (original, "vision_config.image_size", 10**9, "image_size must be at most 16384"),
        (original, "vision_config.hidden_act", "gelu_new", "hidden_act 'gelu_new'"),
        (original, "vision_config.num_attention_heads", 5, "hidden_size 48 cannot be divided by"),
        (original, "vision_config.patch_size", 13, "image_size 56 cannot be divided by patch_size, 13"),
        (original, "vision_config.patch_size", 8, "patches along a side 7 cannot be divided by"),
        (native, "vision_feature_layer", -2, "vision_feature_layer -2"),
        (native, "vision_feature_select_strategy", "full", "vision_feature_select_strategy 'full'"),
        (native, "projector_hidden_act", "relu", "projector_hidden_act 'relu'"),
        (native, "text_config.model_type", "llama", "model_type 'llama'"),
        (native, "text_config.rope_parameters", {"rope_type": "llama3", "rope_theta": 1e6}, "rope_type 'llama3'"),
        (native, "vision_config.norm_type", "rms_norm", "norm_type 'rms_norm'"),
        (native, "vision_config.use_qk_norm", True, "use_qk_norm True"),
        (native, "vision_config.use_mean_pooling", False, "use_mean_pooling False"),
        (native, "vision_config.use_absolute_position_embeddings", False, "use_absolute_position_embeddings False"),
        (native, "vision_config.image_size", [56, 28], "image_size must be a positive whole number, but is [56, 28]"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(
    tmp_path: Path, layout: Callable[[Path, dict[str, Any]], Path], key: str, value: Any, words: str
) -> None:
    change = {key: value}
    if value == []:
        change["model_type"] = "internvl_chat_2"
    if key == "vision_config.patch_size":
        change["vision_config.image_size"] = 56
    with pytest.raises(CheckpointError) as caught:
        load_config(layout(tmp_path, change))
    assert words in str(caught.value)
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "must hold a JSON object"),
        ("\xff", "cannot be read"),
        ("[" * 10**5, "recursion"),
    ],
)
def test_a_broken_config(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=words):
        load_config(tmp_path)
