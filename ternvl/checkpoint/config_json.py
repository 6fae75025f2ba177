"""A checkpoint's `config.json`: reading either layout, and writing the original one.

A setting that is not implemented raises an error that names it: a model that runs and is subtly wrong is worse than
one that does not start. An absent key has the default of the official configuration classes
(`configuration_intern_vit.py` and `configuration_internvl_chat.py` in OpenGVLab/InternVL; `InternVLConfig` and
`Qwen2Config` in transformers).
"""

from __future__ import annotations

from dataclasses import replace

from ternvl.checkpoint import awq
from ternvl.checkpoint.json_section import MOST_LAYERS, Section
from ternvl.config import OFFICIAL_SYSTEM_MESSAGE, LanguageConfig, ModelConfig, VisionConfig
from ternvl.errors import CheckpointError

DTYPES = ("bfloat16", "float16", "float32")
_SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty")


def read(document: Section, generation: Section) -> ModelConfig:
    """Return the configuration of either layout. `generation` is `generation_config.json`, or empty if there is none.

    Raises CheckpointError for anything that is not implemented.
    """
    is_plain = awq.read_group(document) is None
    config = _plain(document, generation)
    return config if is_plain else replace(config, dtype="float32")  # the checkpoint's own would round AWQ's numbers


def _plain(document: Section, generation: Section) -> ModelConfig:
    architectures = document.values.get("architectures") or [document.values.get("model_type")]
    defaults = _sampling_defaults(generation)
    match architectures:
        case ["InternVLChatModel" | "internvl_chat"] | "InternVLChatModel":
            return _original(document, defaults)
        case ["InternVLForConditionalGeneration" | "internvl"] | "InternVLForConditionalGeneration":
            return _native(document, defaults)
    found = architectures[0] if isinstance(architectures, list) and len(architectures) == 1 else architectures
    raise CheckpointError(
        f"{document.name}: architecture {found!r} is not implemented, only InternVLChatModel and "
        "InternVLForConditionalGeneration."
    )


def _original(document: Section, defaults: dict[str, float | int | bool]) -> ModelConfig:
    document.only("select_layer", (-1,), -1)
    document.only("ps_version", ("v2",), "v1")
    document.only("template", ("internvl2_5",), "internvl2_5")
    document.only("pad2square", (False,), False)
    document.only("use_backbone_lora", (0,), 0)
    document.only("use_llm_lora", (0,), 0)
    llm, vit = document.section("llm_config"), document.section("vision_config")
    if vit.values.get("norm_type", "rms_norm") == "rms_norm" or vit.values.get("qk_normalization", True) is True:
        raise CheckpointError(
            f"{vit.name}: this vision tower (norm_type rms_norm, qk_normalization) is an InternViT-6B, which is not "
            "implemented, only InternViT-300M (layer_norm, without qk_normalization)."
        )
    vit.only("norm_type", ("layer_norm",), None)
    vit.only("qk_normalization", (False,), None)
    vision = _vision(vit, image_size=224, qkv_bias=vit.flag("qkv_bias"))
    if document.values.get("force_image_size") is not None:
        document.only("force_image_size", (vision.image_size,), None)
    config = ModelConfig(
        vision=vision,
        language=_language(llm, tied=document.flag("tie_word_embeddings") or llm.flag("tie_word_embeddings")),
        downsample_ratio=_downsample_ratio(document),
        min_dynamic_patch=document.count("min_dynamic_patch", 1),
        max_dynamic_patch=document.count("max_dynamic_patch", 6),
        use_thumbnail=document.flag("use_thumbnail"),
        system_message=_system_message(document),
        dtype=_dtype(document, llm),
        defaults=defaults,
    )
    return _checked(config, document)


def _native(document: Section, defaults: dict[str, float | int | bool]) -> ModelConfig:
    document.only("vision_feature_layer", (-1,), -1)
    document.only("vision_feature_select_strategy", ("default",), "default")
    document.only("projector_hidden_act", ("gelu",), "gelu")
    text, vit = document.section("text_config"), document.section("vision_config")
    vit.only("norm_type", ("layer_norm",), "layer_norm")
    vit.only("use_qk_norm", (False,), False)
    vit.only("use_absolute_position_embeddings", (True,), True)
    # Without mean pooling this architecture has a norm after the last layer.
    vit.only("use_mean_pooling", (True,), True)
    config = ModelConfig(
        vision=_vision(vit, image_size=448, qkv_bias=vit.flag("attention_bias")),
        language=_language(text, tied=document.flag("tie_word_embeddings") or text.flag("tie_word_embeddings")),
        downsample_ratio=_downsample_ratio(document),
        dtype=_dtype(document, text),
        defaults=defaults,
    )
    return _checked(config, document)


def _vision(vit: Section, *, image_size: int, qkv_bias: bool) -> VisionConfig:
    vit.only("hidden_act", ("gelu",), "gelu")
    vit.only("num_channels", (3,), 3)
    return VisionConfig(
        hidden_size=vit.count("hidden_size"),
        num_layers=vit.count("num_hidden_layers", most=MOST_LAYERS),
        num_heads=vit.count("num_attention_heads"),
        intermediate_size=vit.count("intermediate_size"),
        image_size=vit.side("image_size", image_size),
        patch_size=vit.side("patch_size", 14),
        layer_norm_eps=vit.number("layer_norm_eps", 1e-6),
        qkv_bias=qkv_bias,
    )


def _language(llm: Section, *, tied: bool) -> LanguageConfig:
    llm.only("model_type", ("qwen2",), "qwen2")
    llm.only("architectures", (["Qwen2ForCausalLM"], ["Qwen2Model"], None), None)
    llm.only("hidden_act", ("silu",), "silu")
    llm.only("use_sliding_window", (False,), False)
    hidden_size, num_heads = llm.count("hidden_size"), llm.count("num_attention_heads")
    if llm.values.get("head_dim") is not None:
        llm.only("head_dim", (hidden_size // num_heads,), None)
    return LanguageConfig(
        hidden_size=hidden_size,
        num_layers=llm.count("num_hidden_layers", most=MOST_LAYERS),
        num_heads=num_heads,
        num_kv_heads=llm.count("num_key_value_heads"),
        intermediate_size=llm.count("intermediate_size"),
        vocab_size=llm.count("vocab_size"),
        rms_norm_eps=llm.number("rms_norm_eps", 1e-6),
        rope_theta=_rope_theta(llm),
        max_position_embeddings=llm.count("max_position_embeddings", 32_768),
        tie_word_embeddings=tied,
    )


def _rope_theta(llm: Section) -> float:
    """The rotary base. Dynamic scaling is accepted, since it changes nothing below `max_position_embeddings`."""
    theta = llm.values.get("rope_theta", 10_000.0)
    for key in ("rope_scaling", "rope_parameters"):
        if llm.values.get(key) is None:
            continue
        rope = llm.section(key)
        rope.only("type", ("default", "dynamic"), "default")
        rope.only("rope_type", ("default", "dynamic"), "default")
        rope.only("partial_rotary_factor", (1,), 1)
        theta = rope.number("rope_theta", theta)
    return float(Section(llm.name, {"rope_theta": theta}).number("rope_theta"))


def _downsample_ratio(document: Section) -> float:
    return float(document.only("downsample_ratio", (0.5, 0.25, 1.0), 0.5))


def _dtype(*sections: Section) -> str:
    """The first type that a section names; else float32, which holds the values of all types."""
    for section in sections:
        for key in ("dtype", "torch_dtype"):
            if section.values.get(key) is not None:
                return str(section.only(key, DTYPES, None))
    return "float32"


def _system_message(document: Section) -> str:
    message = document.values.get("system_message")
    if message is None:
        return OFFICIAL_SYSTEM_MESSAGE
    if not isinstance(message, str):
        raise CheckpointError(f"{document.name}: system_message must be a string or null, but is {message!r}.")
    return message


def _sampling_defaults(generation: Section) -> dict[str, float | int | bool]:
    values = {key: generation.number(key) for key in _SAMPLING if generation.values.get(key) is not None}
    if generation.values.get("do_sample") is False:
        values["temperature"] = 0.0
    return dict(values)


def _checked(config: ModelConfig, document: Section) -> ModelConfig:
    """The configuration. Raises CheckpointError if its sizes do not fit together."""
    vision, language = config.vision, config.language
    rules = (
        (vision.hidden_size, vision.num_heads, "the vision hidden_size", "its num_attention_heads"),
        (language.hidden_size, language.num_heads, "the language hidden_size", "its num_attention_heads"),
        (language.num_heads, language.num_kv_heads, "the language num_attention_heads", "its num_key_value_heads"),
        (language.head_dim, 2, "the language head size", "two halves"),
        (vision.image_size, vision.patch_size, "image_size", "patch_size"),
        (vision.grid, int(1 / config.downsample_ratio), "the patches along a side", "1 / downsample_ratio"),
    )
    for size, divisor, name, by in rules:
        if size % divisor:
            raise CheckpointError(f"{document.name}: {name} {size} cannot be divided by {by}, {divisor}.")
    if config.min_dynamic_patch > config.max_dynamic_patch:
        raise CheckpointError(
            f"{document.name}: min_dynamic_patch {config.min_dynamic_patch} is above max_dynamic_patch "
            f"{config.max_dynamic_patch}."
        )
    return config
