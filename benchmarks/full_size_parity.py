"""Is the model the official one at full size? Compare it with transformers on random weights in float32.

    python benchmarks/full_size_parity.py                  # random checkpoints in a temporary folder, all layouts
    python benchmarks/full_size_parity.py --layout original

For text alone and for one 448-pixel tile: the largest difference of any logit (prompt and answer), and whether 64
greedy tokens are equal. transformers answers with its cache. Ours sees prompt and answer in one pass, and its choice
at each position must be the next token of that answer, which says the same. The two models are never in memory
together. The last line is JSON. Exit code 1 where a bound is broken.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import random_checkpoint
import torch
from torch import Tensor

from ternvl.checkpoint import weights
from ternvl.checkpoint.source import load_config
from ternvl.types import ImageSpan, Prompt

BOUND = 1e-4
IMG, IMG_END, IMG_CONTEXT = 151_665, 151_666, 151_667


@dataclass
class Answer:
    """What transformers says to one prompt."""

    prompt: Prompt
    tokens: list[int]
    logits: Tensor
    """[T + 63, V]: of the prompt and of all tokens of the answer but the last."""

    @property
    def margin(self) -> float:
        """The narrowest lead of a chosen token over the next best."""
        best = self.logits[self.prompt.num_tokens - 1 :].topk(2).values
        return float((best[:, 0] - best[:, 1]).min())


def prompts(seed: int) -> dict[str, Prompt]:
    """Random text, and random text around one random tile."""
    generator = torch.Generator().manual_seed(seed)
    text = tuple(torch.randint(0, 151_643, (48,), generator=generator).tolist())
    num_tokens = random_checkpoint.CONFIG.tokens_per_tile
    ids = (*text[:16], IMG, *[IMG_CONTEXT] * num_tokens, IMG_END, *text[16:])
    pixels = torch.randn(1, 3, 448, 448, generator=generator)
    return {"text": Prompt(text), "one tile": Prompt(ids, (ImageSpan(17, num_tokens, 0, 1, b""),), pixels)}


@torch.inference_mode()
def answer(model: Any, prompt: Prompt, num_tokens: int) -> Answer:
    """Greedy tokens of transformers' model, with its cache."""
    out = model(input_ids=torch.tensor([prompt.token_ids]), pixel_values=prompt.pixel_values, use_cache=True)
    logits, tokens = [out.logits[0]], [int(out.logits[0, -1].argmax())]
    while len(tokens) < num_tokens:
        out = model(input_ids=torch.tensor([tokens[-1:]]), past_key_values=out.past_key_values, use_cache=True)
        logits.append(out.logits[0])
        tokens.append(int(out.logits[0, -1].argmax()))
    return Answer(prompt, tokens, torch.cat(logits).float())


def reference(folder: Path, num_tokens: int, seed: int) -> dict[str, Answer]:
    """What transformers, which reads its own layout, says to all prompts."""
    from transformers import InternVLForConditionalGeneration

    model: Any = InternVLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"transformers: {count:,} parameters", flush=True)
    return {name: answer(model, prompt, num_tokens) for name, prompt in prompts(seed).items()}


def compare(folder: Path, answers: dict[str, Answer]) -> dict[str, Any]:
    """Figures of our model, read from `folder`, against what transformers said."""
    start = time.perf_counter()
    model = weights.load(folder, load_config(folder), dtype=torch.float32)
    figures: dict[str, Any] = {
        "load_s": round(time.perf_counter() - start, 1),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    for name, theirs in answers.items():
        logits = model(replace(theirs.prompt, token_ids=(*theirs.prompt.token_ids, *theirs.tokens[:-1])))
        chosen = logits[theirs.prompt.num_tokens - 1 :].argmax(-1).tolist()
        figures[name] = {
            "max_abs_diff": float((logits - theirs.logits).abs().max()),
            "greedy_equal": sum(a == b for a, b in zip(chosen, theirs.tokens, strict=True)),
        }
    return figures


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", action="append", choices=random_checkpoint.LAYOUTS, help="default: all")
    parser.add_argument("--tokens", type=int, default=64, help="greedy tokens to compare")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    layouts = args.layout or list(random_checkpoint.LAYOUTS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        random_checkpoint.write(folder / "hf", layout="hf", seed=args.seed)
        answers = reference(folder / "hf", args.tokens, args.seed)
        gc.collect()
        results = {}
        for layout in layouts:
            if layout != "hf":
                random_checkpoint.write(folder / layout, layout=layout, seed=args.seed)
            results[layout] = compare(folder / layout, answers)
            print(f"{layout}: {results[layout]}", flush=True)
    return report(results, answers)


def report(results: dict[str, Any], answers: dict[str, Answer]) -> int:
    """Print the last line and judge."""
    passed = all(
        figures["parameters"] == random_checkpoint.NUM_PARAMETERS
        and all(
            figures[name]["max_abs_diff"] < BOUND and figures[name]["greedy_equal"] == len(answers[name].tokens)
            for name in answers
        )
        for figures in results.values()
    )
    about = {
        name: {"std": float(a.logits.std()), "margin": a.margin, "distinct": len(set(a.tokens))}
        for name, a in answers.items()
    }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps({"passed": passed, "layouts": results, "transformers": about, "peak_memory_gb": round(peak, 2)}))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
