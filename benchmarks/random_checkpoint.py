"""Write a checkpoint with the exact shapes of InternVL3-1B (938,193,024 parameters, bfloat16) and random weights.

    python benchmarks/random_checkpoint.py OUT --layout original --tokenizer DIR
    python benchmarks/random_checkpoint.py OUT --outliers 6    # with outlier channels, as in real vision towers

It takes the same time and memory as the real checkpoint, so it replaces it in measurements of speed, memory and parity.
A tensor depends only on the seed and its name, so all layouts have the same model. One tensor is in memory at a time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ternvl.checkpoint import write_config
from ternvl.config import LanguageConfig, ModelConfig, VisionConfig
from ternvl.model.internvl import InternVL

CONFIG = ModelConfig(
    vision=VisionConfig(1024, num_layers=24, num_heads=16, intermediate_size=4096, image_size=448, patch_size=14),
    language=LanguageConfig(
        896, num_layers=24, num_heads=14, num_kv_heads=2, intermediate_size=4864, vocab_size=151_674
    ),
)
NUM_PARAMETERS = 938_193_024
LAYOUTS = ("original", "hf", "hf-new")
OUTLIER = 128
"""Factor of an outlier channel's activations. It is a power of two, so that products are the same to the bit."""

_TO_HF = (
    ("vision_model.embeddings.class_embedding", "vision_tower.embeddings.cls_token"),
    ("vision_model.embeddings.position_embedding", "vision_tower.embeddings.position_embeddings"),
    ("vision_model.embeddings.patch_embedding", "vision_tower.embeddings.patch_embeddings.projection"),
    ("vision_model.encoder.layers.", "vision_tower.encoder.layer."),
    (".attn.qkv.", ".attention.qkv."),
    (".attn.proj.", ".attention.projection_layer."),
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
    (".ls1", ".lambda_1"),
    (".ls2", ".lambda_2"),
    ("mlp1.0.", "multi_modal_projector.layer_norm."),
    ("mlp1.1.", "multi_modal_projector.linear_1."),
    ("mlp1.3.", "multi_modal_projector.linear_2."),
)


def shapes() -> dict[str, torch.Size]:
    """Return the names and shapes of the model's tensors, in the original layout."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in InternVL(CONFIG).state_dict().items()}


def weight(name: str, shape: torch.Size, seed: int) -> Tensor:
    """Return random tensor `name` in bfloat16, scaled so that activations keep their size and logits spread by 2."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(int.from_bytes(digest[:7], "big")))
    if "norm" in name or name.startswith("mlp1.0.") or ".ls" in name:
        values = noise * 0.1 + (0 if name.endswith("bias") else 1)
    elif name.endswith("bias"):
        values = noise * 0.1
    elif "embed_tokens" in name or name.endswith("_embedding"):
        values = noise
    else:
        values = noise * (2 if "lm_head" in name else 1) / math.sqrt(shape[1:].numel())
    return values.to(torch.bfloat16)


def with_outliers(name: str, tensor: Tensor, outliers: int) -> Tensor:
    """Return the tensor of an equivalent model with outlier channels.

    The first `outliers` channels after each norm of the vision tower are `OUTLIER` times larger, and the weights that
    read them are divided by the same factor.
    """
    changed = tensor.clone()
    if name.startswith("vision_model.encoder.layers."):
        if ".norm" in name:
            changed[:outliers] *= OUTLIER
        elif name.endswith(("qkv.weight", "fc1.weight")):
            changed[:, :outliers] /= OUTLIER
    return changed


def renamed(name: str, shape: torch.Size, layout: str) -> list[tuple[str, torch.Size, slice]]:
    """Return the names and shapes of an original tensor in `layout`, and the rows of the original that each takes."""
    rows = slice(0, shape[0])
    if layout == "original":
        return [(name, shape, rows)]
    for ours, theirs in _TO_HF if not name.startswith("language_model.") else ():
        name = name.replace(ours, theirs)
    if layout == "hf-new":
        if name.startswith("language_model."):
            return [(name.removeprefix("language_model.").replace("model.", "model.language_model.", 1), shape, rows)]
        name = "model." + name
    if ".qkv." not in name:
        return [(name, shape, rows)]
    third = shape[0] // 3
    part = torch.Size((third, *shape[1:]))
    return [
        (name.replace(".qkv.", f".{which}_proj."), part, slice(i * third, (i + 1) * third))
        for i, which in enumerate("qkv")
    ]


def write(folder: Path, *, layout: str, seed: int = 0, outliers: int = 0) -> None:
    """Write `config.json` and `model.safetensors`; `outliers` is passed to `with_outliers`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = write_config.write(CONFIG, dtype="bfloat16", tied=False) if layout == "original" else hf_config()
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    names = [part[:2] for name, shape in shapes().items() for part in renamed(name, shape, layout)]

    def tensors() -> Iterator[Tensor]:
        for name, shape in shapes().items():
            whole = with_outliers(name, weight(name, shape, seed), outliers)
            yield from (whole[rows] for _, _, rows in renamed(name, shape, layout))

    write_safetensors(folder / "model.safetensors", names, tensors())


def write_safetensors(path: Path, names: list[tuple[str, torch.Size]], tensors: Iterable[Tensor]) -> None:
    """Write a bfloat16 file tensor by tensor: eight bytes of header length, a JSON header, the data in order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in names:
        start, end = end, end + shape.numel() * 2
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            file.write(tensor.contiguous().view(torch.uint8).numpy().data)


def hf_config() -> dict[str, Any]:
    """Return the `config.json` that transformers writes for InternVL3-1B."""
    vision = CONFIG.vision
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "downsample_ratio": CONFIG.downsample_ratio,
        "image_seq_length": CONFIG.tokens_per_tile,
        "image_token_id": 151_667,
        "model_type": "internvl",
        "projector_hidden_act": "gelu",
        "text_config": write_config.write(CONFIG, dtype="bfloat16", tied=False)["llm_config"],
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vision_config": {
            "architectures": ["InternVLVisionModel"],
            "attention_bias": vision.qkv_bias,
            "hidden_act": "gelu",
            "hidden_size": vision.hidden_size,
            "image_size": [vision.image_size, vision.image_size],
            "intermediate_size": vision.intermediate_size,
            "layer_norm_eps": vision.layer_norm_eps,
            "model_type": "internvl_vision",
            "norm_type": "layer_norm",
            "num_attention_heads": vision.num_heads,
            "num_hidden_layers": vision.num_layers,
            "patch_size": [vision.patch_size, vision.patch_size],
            "use_absolute_position_embeddings": True,
            "use_mask_token": False,
            "use_mean_pooling": True,
            "use_qk_norm": False,
        },
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
    }


def main() -> None:
    """Write the checkpoint that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--layout", choices=LAYOUTS, default="original")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--outliers", type=int, default=0, help=f"number of channels with activations that are {OUTLIER} times larger"
    )
    parser.add_argument("--tokenizer", type=Path, help="folder whose tokenizer files are copied")
    args = parser.parse_args()
    write(args.out, layout=args.layout, seed=args.seed, outliers=args.outliers)
    if args.tokenizer:
        for file in args.tokenizer.glob("tokenizer*.json"):
            shutil.copyfile(file, args.out / file.name)
    count = sum(shape.numel() for shape in shapes().values())
    assert count == NUM_PARAMETERS
    print(f"{args.out}: {count:,} parameters, layout {args.layout}")


if __name__ == "__main__":
    main()
