"""The oracle: transformers' InternVL with random weights, and checkpoints of it in every layout, with a map of names
that is written apart from the package's."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import InternVLConfig, InternVLForConditionalGeneration

from ternvl.types import ImageSpan, Prompt

LAYOUTS = ("original", "hf-old", "hf-new")


@dataclass(frozen=True)
class Sizes:
    image_size: int = 28
    vision: tuple[int, int, int, int] = (32, 2, 4, 48)  # hidden, layers, heads, intermediate
    text: tuple[int, int, int, int, int] = (48, 2, 4, 2, 80)  # hidden, layers, heads, kv heads, intermediate
    vocab: int = 130
    qkv_bias: bool = True
    rope_theta: float = 1_000_000.0
    rms_norm_eps: float = 1e-6
    layer_norm_eps: float = 1e-6

    @property
    def tokens_per_tile(self) -> int:
        return (self.image_size // 28) ** 2


SIZES = (
    Sizes(),
    Sizes(image_size=56, vision=(48, 3, 3, 64), text=(64, 3, 8, 1, 96), vocab=211, qkv_bias=False),
    Sizes(
        image_size=56,
        vision=(24, 1, 2, 40),
        text=(36, 1, 6, 3, 50),
        rope_theta=10_000.0,
        rms_norm_eps=1e-2,  # large enough to be missed where it is not read
        layer_norm_eps=1e-2,
    ),
)


@cache
def build(sizes: Sizes, seed: int = 0) -> InternVLForConditionalGeneration:
    """A float32 model whose logits spread over several units, so that its greedy choices are no coin tosses."""
    hidden, layers, heads, intermediate = sizes.vision
    text_hidden, text_layers, text_heads, kv_heads, text_intermediate = sizes.text
    config = InternVLConfig(
        vision_config={
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": intermediate,
            "image_size": [sizes.image_size] * 2,
            "patch_size": [14, 14],
            "attention_bias": sizes.qkv_bias,
            "layer_norm_eps": sizes.layer_norm_eps,
        },
        text_config={
            "model_type": "qwen2",
            "hidden_size": text_hidden,
            "num_hidden_layers": text_layers,
            "num_attention_heads": text_heads,
            "num_key_value_heads": kv_heads,
            "intermediate_size": text_intermediate,
            "vocab_size": sizes.vocab,
            "rms_norm_eps": sizes.rms_norm_eps,
            "rope_parameters": {"rope_type": "default", "rope_theta": sizes.rope_theta},
        },
        image_token_id=sizes.vocab - 1,
        image_seq_length=sizes.tokens_per_tile,
        tie_word_embeddings=False,
    )
    model = InternVLForConditionalGeneration(config).eval().requires_grad_(False)
    randomise(model, seed)
    return model


def randomise(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.named_parameters():
        noise = torch.randn(tensor.shape, generator=generator)
        if "norm" in name or "lambda" in name:
            tensor.copy_(1 + 0.2 * noise if name.endswith("weight") or "lambda" in name else 0.2 * noise)
        elif name.endswith("bias"):
            tensor.copy_(0.2 * noise)
        elif "embed_tokens" in name or "cls_token" in name or "position_embeddings" in name:
            tensor.copy_(noise)
        else:
            gain = 4 if "lm_head" in name else 1.5
            tensor.copy_(noise * gain / tensor[0].numel() ** 0.5)


def to_original(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of transformers' model under the names of the official checkpoint."""
    state = dict(state)
    out = {"language_model.lm_head.weight": state.pop("lm_head.weight")}
    vit = "model.vision_tower.embeddings."
    out["vision_model.embeddings.class_embedding"] = state.pop(vit + "cls_token")
    out["vision_model.embeddings.position_embedding"] = state.pop(vit + "position_embeddings")
    for kind in ("weight", "bias"):
        out[f"vision_model.embeddings.patch_embedding.{kind}"] = state.pop(f"{vit}patch_embeddings.projection.{kind}")
        for ours, theirs in (("0", "layer_norm"), ("1", "linear_1"), ("3", "linear_2")):
            out[f"mlp1.{ours}.{kind}"] = state.pop(f"model.multi_modal_projector.{theirs}.{kind}")
    layer = 0
    while f"model.vision_tower.encoder.layer.{layer}.lambda_1" in state:
        theirs, ours = f"model.vision_tower.encoder.layer.{layer}.", f"vision_model.encoder.layers.{layer}."
        out[ours + "ls1"], out[ours + "ls2"] = state.pop(theirs + "lambda_1"), state.pop(theirs + "lambda_2")
        for kind in ("weight", "bias"):
            if theirs + f"attention.q_proj.{kind}" in state:
                qkv = [state.pop(f"{theirs}attention.{x}_proj.{kind}") for x in ("q", "k", "v")]
                out[f"{ours}attn.qkv.{kind}"] = torch.cat(qkv)
            out[f"{ours}attn.proj.{kind}"] = state.pop(f"{theirs}attention.projection_layer.{kind}")
            out[f"{ours}norm1.{kind}"] = state.pop(f"{theirs}layernorm_before.{kind}")
            out[f"{ours}norm2.{kind}"] = state.pop(f"{theirs}layernorm_after.{kind}")
            out[f"{ours}mlp.fc1.{kind}"] = state.pop(f"{theirs}mlp.fc1.{kind}")
            out[f"{ours}mlp.fc2.{kind}"] = state.pop(f"{theirs}mlp.fc2.{kind}")
        layer += 1
    for name in [name for name in state if name.startswith("model.language_model.")]:
        out["language_model.model." + name[len("model.language_model.") :]] = state.pop(name)
    assert not state
    return out


def to_old(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names that transformers 4 wrote, and that transformers 5 still writes."""
    out = {}
    for name, tensor in state.items():
        if name.startswith("model.language_model."):
            name = "language_model.model." + name[len("model.language_model.") :]
        elif name.startswith("lm_head."):
            name = "language_model." + name
        out[name.removeprefix("model.") if not name.startswith("language_model.") else name] = tensor
    return out


def original_config(sizes: Sizes) -> dict:
    """Keys and values as in the official file of InternVL3-1B, sizes apart."""
    hidden, layers, heads, intermediate = sizes.vision
    text_hidden, text_layers, text_heads, kv_heads, text_intermediate = sizes.text
    return {
        "architectures": ["InternVLChatModel"],
        "auto_map": {"AutoModel": "modeling_internvl_chat.InternVLChatModel"},
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": sizes.image_size,
        "hidden_size": text_hidden,
        "image_fold": None,
        "llm_config": {
            "architectures": ["Qwen2ForCausalLM"],
            "attention_dropout": 0.0,
            "bos_token_id": 151643,
            "eos_token_id": 151643,
            "hidden_act": "silu",
            "hidden_size": text_hidden,
            "intermediate_size": text_intermediate,
            "max_position_embeddings": 32768,
            "max_window_layers": 70,
            "model_type": "qwen2",
            "moe_config": None,
            "num_attention_heads": text_heads,
            "num_hidden_layers": text_layers,
            "num_key_value_heads": kv_heads,
            "rms_norm_eps": sizes.rms_norm_eps,
            "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
            "rope_theta": sizes.rope_theta,
            "sliding_window": None,
            "torch_dtype": "bfloat16",
            "use_bfloat16": True,
            "use_cache": False,
            "use_sliding_window": False,
            "vocab_size": sizes.vocab,
        },
        "max_dynamic_patch": 12,
        "min_dynamic_patch": 1,
        "model_type": "internvl_chat",
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": -1,
        "system_message": None,
        "template": "internvl2_5",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": None,
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "use_thumbnail": True,
        "vision_config": {
            "architectures": ["InternVisionModel"],
            "attention_dropout": 0.0,
            "drop_path_rate": 0.1,
            "dropout": 0.0,
            "hidden_act": "gelu",
            "hidden_size": hidden,
            "image_size": sizes.image_size,
            "intermediate_size": intermediate,
            "layer_norm_eps": sizes.layer_norm_eps,
            "model_type": "intern_vit_6b",
            "norm_type": "layer_norm",
            "num_attention_heads": heads,
            "num_channels": 3,
            "num_hidden_layers": layers,
            "patch_size": 14,
            "qk_normalization": False,
            "qkv_bias": sizes.qkv_bias,
            "torch_dtype": "bfloat16",
            "use_flash_attn": True,
        },
    }


def old_config(sizes: Sizes) -> dict:
    """As transformers 4 wrote it: `rope_theta` by itself, `torch_dtype`."""
    config = build(sizes).config.to_dict()
    text = config["text_config"]
    text["rope_theta"] = text.pop("rope_parameters")["rope_theta"]
    text["rope_scaling"] = {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"}
    config.pop("tie_word_embeddings")
    return config | {"torch_dtype": "float32", "architectures": ["InternVLForConditionalGeneration"]}


def write(sizes: Sizes, folder: Path, layout: str, *, shards: int = 1) -> Path:
    """A checkpoint of `build(sizes)` in `folder`, which is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    model = build(sizes)
    if layout == "hf-new":
        model.config.save_pretrained(folder)
    else:
        config = original_config(sizes) if layout == "original" else old_config(sizes)
        (folder / "config.json").write_text(json.dumps(config))
    state = model.state_dict()
    write_tensors({"original": to_original, "hf-old": to_old, "hf-new": dict}[layout](state), folder, shards)
    return folder


def write_tensors(state: dict[str, Tensor], folder: Path, shards: int = 1) -> None:
    if shards == 1:
        save_file(state, folder / "model.safetensors")
        return
    weight_map = {}
    for index in range(shards):
        part = dict(list(state.items())[index::shards])
        file = f"model-{index + 1:05}-of-{shards:05}.safetensors"
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def prompt(sizes: Sizes, tiles: tuple[int, ...] = (), seed: int = 0) -> Prompt:
    """Random text around images of so many tiles each."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, sizes.vocab - 1, (7,), generator=generator).tolist()
    spans, first = [], 0
    for index, count in enumerate(tiles):
        length = count * sizes.tokens_per_tile
        spans.append(ImageSpan(len(ids), length, first, count, bytes([index])))
        ids += [sizes.vocab - 1] * length + torch.randint(0, sizes.vocab - 1, (4,), generator=generator).tolist()
        first += count
    pixels = torch.randn(first, 3, sizes.image_size, sizes.image_size, generator=generator) if first else None
    return Prompt(tuple(ids), tuple(spans), pixels)


@torch.inference_mode()
def logits(model: InternVLForConditionalGeneration, prompt: Prompt) -> Tensor:
    """[T, V]"""
    return model(input_ids=torch.tensor([prompt.token_ids]), pixel_values=prompt.pixel_values).logits[0]


@torch.inference_mode()
def greedy(model: InternVLForConditionalGeneration, prompt: Prompt, count: int) -> list[int]:
    """The likeliest tokens, one after the other, with transformers' own cache."""
    ids = torch.tensor([prompt.token_ids])
    out = model(input_ids=ids, pixel_values=prompt.pixel_values, use_cache=True)
    tokens = [int(out.logits[0, -1].argmax())]
    while len(tokens) < count:
        out = model(input_ids=torch.tensor([tokens[-1:]]), past_key_values=out.past_key_values, use_cache=True)
        tokens.append(int(out.logits[0, -1].argmax()))
    return tokens
