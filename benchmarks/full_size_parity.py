"""Compare the model at full size with transformers' model, on random weights in float32.

    python benchmarks/full_size_parity.py                  # random checkpoints in a temporary folder, all layouts
    python benchmarks/full_size_parity.py --layout original

For text only and for one tile of 448 pixels, it reports the largest difference of any logit (of prompt and answer), and
whether 64 greedy tokens are equal. transformers generates the answer with its cache. Our model computes prompt and
answer in one pass, and its most likely token at each position must be the next token of the answer, which is
equivalent. The two models are never in memory at the same time. The last line is JSON. The exit code is 1 if a bound
is exceeded.
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
    """The answer of transformers to one prompt."""

    prompt: Prompt
    tokens: list[int]
    logits: Tensor
    """[T + 63, V]: logits of the prompt and of all tokens of the answer except the last."""

    @property
    def margin(self) -> float:
        """The smallest difference between the best and the second best logit of an answer token."""
        best = self.logits[self.prompt.num_tokens - 1 :].topk(2).values
        return float((best[:, 0] - best[:, 1]).min())


def prompts(seed: int) -> dict[str, Prompt]:
    """Return a prompt of random text, and one of random text around a random tile."""
    generator = torch.Generator().manual_seed(seed)
    text = tuple(torch.randint(0, 151_643, (48,), generator=generator).tolist())
    num_tokens = random_checkpoint.CONFIG.tokens_per_tile
    ids = (*text[:16], IMG, *[IMG_CONTEXT] * num_tokens, IMG_END, *text[16:])
    pixels = torch.randn(1, 3, 448, 448, generator=generator)
    return {"text": Prompt(text), "one tile": Prompt(ids, (ImageSpan(17, num_tokens, 0, 1, b""),), pixels)}


@torch.inference_mode()
def answer(model: Any, prompt: Prompt, num_tokens: int) -> Answer:
    """Generate greedy tokens with transformers' model and its cache."""
    out = model(input_ids=torch.tensor([prompt.token_ids]), pixel_values=prompt.pixel_values, use_cache=True)
    logits, tokens = [out.logits[0]], [int(out.logits[0, -1].argmax())]
    while len(tokens) < num_tokens:
        out = model(input_ids=torch.tensor([tokens[-1:]]), past_key_values=out.past_key_values, use_cache=True)
        logits.append(out.logits[0])
        tokens.append(int(out.logits[0, -1].argmax()))
    return Answer(prompt, tokens, torch.cat(logits).float())


def reference(folder: Path, num_tokens: int, seed: int) -> dict[str, Answer]:
    """Return the answers of transformers to all prompts, with the weights in its own layout."""
    from transformers import InternVLForConditionalGeneration

    model: Any = InternVLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"transformers: {count:,} parameters", flush=True)
    return {name: answer(model, prompt, num_tokens) for name, prompt in prompts(seed).items()}


def compare(folder: Path, answers: dict[str, Answer]) -> dict[str, Any]:
    """Load our model from `folder`, and compare it with the answers of transformers."""
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
    """Run the comparison; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--layout",
        action="append",
        choices=random_checkpoint.LAYOUTS,
        help="layout of the checkpoint (repeatable); by default all",
    )
    parser.add_argument("--tokens", type=int, default=64, help="number of greedy tokens to compare")
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
    """Print the last line; return the exit code."""
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
