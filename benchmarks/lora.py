"""Measure the cost of LoRA adapters, and check that they change no other answers, leak no memory and stay complete.

    python benchmarks/random_checkpoint.py DIR --layout original --tokenizer TOKENIZER
    python -m benchmarks.lora cost DIR       # a decode step of 8 sequences, with 8 adapters and without
    python -m benchmarks.lora mixed          # 200 requests with one of 5 adapters or none: alone and together
    python -m benchmarks.lora churn          # 200 adapters loaded, used and unloaded while streams run
    python -m benchmarks.lora stall DIR      # the longest pause of streams while adapters are loaded
    python -m benchmarks.lora kills          # a server is killed 20 times while it receives and loads adapters

Adapters are random, of rank 16, for every module that can have one. Without DIR, the embedded model is used. The last
line is JSON. The exit code is 1 if a check fails.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.invariance import alone, differing, engine_of, requests_of, together
from benchmarks.lora_server import churn, kills, stall
from benchmarks.random_adapter import write_adapter
from ternvl import LLM
from ternvl.config import EngineConfig
from ternvl.engine.engine import Engine
from ternvl.engine.request import Request
from ternvl.lora.files import linears, read
from ternvl.model.internvl import InternVL
from ternvl.params import SamplingParams
from ternvl.types import Prompt


def cost(llm: LLM, folder: Path, num_steps: int) -> dict[str, Any]:
    """Return the step times of three kinds of engines with 8 sequences, which run one step each in turn.

    The kinds are: a model that never had an adapter, which equals one whose adapters are not in use; a model whose
    adapters only other engines use at the moment; and sequences with adapters.
    """
    model = llm.engine.model
    never = _twin(model)
    engines = {"never had one": _decoding(never, [None] * 8), "others have adapters": _decoding(model, [None] * 8)}
    for number, name in enumerate(("int8", "bfloat16", "float32")):
        seeds = range(
            8 * number, 8 * number + 8
        )  # other seeds for each type, since an adapter is identified by its files
        folders = [write_adapter(folder / f"a{seed}", llm.config, seed, size=0.1) for seed in seeds]
        adapters = [read(each, each.name, linears(llm.config), dtype=name) for each in folders]
        engines[f"8 adapters, {name}"] = _decoding(model, adapters)
        engines[f"8 times one adapter, {name}"] = _decoding(model, adapters[:1] * 8)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
    order = list(engines)
    for step in range(num_steps):
        for name in order[step % len(order) :] + order[: step % len(order)]:
            start = time.perf_counter(), time.process_time()
            engines[name].step()
            times[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    result: dict[str, Any] = {"steps": num_steps, "threads": torch.get_num_threads()}
    for index, kind in enumerate(("clock", "processor")):
        medians = {name: statistics.median(each[index] for each in times[name]) for name in engines}
        base = medians["never had one"]
        result[kind] = {name: round(1e3 * each, 2) for name, each in medians.items()}
        for name, each in medians.items():
            print(f"{kind}, {name}: median {1e3 * each:.1f} ms a step ({100 * (each / base - 1):+.1f} %)", flush=True)
    return result


def _twin(model: InternVL) -> InternVL:
    """Return a copy of the model that shares its tensors."""
    for module in model.modules():
        for pointers in ("description", "native", "adapted"):  # created again when they are needed
            module.__dict__.pop(pointers, None)
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def _decoding(model: InternVL, adapters: Sequence[Any]) -> Engine:
    """Return an engine with one sequence per adapter, whose prompts are computed already."""
    engine = Engine(model, EngineConfig(max_model_len=1024, kv_cache_memory=2**28), stop_ids=())
    for number, adapter in enumerate(adapters):
        params = SamplingParams(temperature=0, ignore_eos=True)
        prompt = Prompt(tuple(random.Random(number).randrange(300, 600) for _ in range(8)))
        engine.add(Request(f"s{number}", prompt, params, adapter=adapter))
    while any(sequence.num_uncomputed > 1 for sequence in engine.scheduler.waiting + engine.scheduler.running):
        engine.step()
    return engine


def mixed(llm: LLM, folder: Path, count: int) -> dict[str, Any]:
    """Run the check of `benchmarks/invariance.py`, each request with one of 5 adapters or none."""
    parts = [("language_model.",), ("language_model.",), ("mlp1.",), ("vision_model.",), ("",)]
    adapters = [
        llm.adapters.read(f"a{seed}", write_adapter(folder / f"a{seed}", llm.config, seed, parts=each, size=0.3))
        for seed, each in enumerate(parts)
    ]
    rng, chosen, requests = random.Random(1), dict[str, Any](), []
    for request in requests_of(llm, count, 0):
        adapter = chosen[request.sibling_of] if request.sibling_of else rng.choice([*adapters, None])
        chosen[request.id] = adapter
        requests.append(replace(request, adapter=adapter))
    expected = alone(llm, requests)
    plain = alone(llm, [replace(request, adapter=None) for request in requests])
    result: dict[str, Any] = {"requests": count, "tokens": sum(map(len, expected.values()))}
    result["tokens_that_adapters_change"] = differing(plain, expected)["differing_tokens"]
    print(result, flush=True)
    longest = max(request.prompt.num_tokens for request in requests) + 64
    token_bytes = llm.engine.kv_cache_bytes // llm.engine.kv_cache_tokens
    tight = {
        "max_model_len": longest,
        "kv_cache_memory": 2 * (longest + 16) * token_bytes,
        "max_num_batched_tokens": 64,
    }
    for name, options in {"company": {"max_num_batched_tokens": 100}, "preempted": tight}.items():
        engine = engine_of(llm, **options)
        result[name] = differing(expected, together(engine, requests, 1))
        result[name] |= {
            "prefix_hits": engine.stats().num_prefix_hit_tokens,
            "left": engine.runner.adapters.num_installed,
        }
        print(f"{name}: {result[name]}", flush=True)
    result["ok"] = all(not result[name]["differing_logprobs"] for name in ("company", "preempted"))
    return result


def main() -> int:
    """Run the chosen measurement; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=("cost", "mixed", "churn", "stall", "kills"))
    parser.add_argument("model", nargs="?", help="folder of the checkpoint; by default the embedded model")
    parser.add_argument("--count", type=int, help="number of steps, requests, adapters or kills")
    parser.add_argument(
        "--quantization", default="none", help="quantisation of the base model in `cost`, `mixed` and `stall`"
    )
    args = parser.parse_args()
    llm = LLM(args.model, quantization=args.quantization, max_model_len=2048)
    served = [*([args.model] if args.model else []), "--quantization", args.quantization]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        questions: dict[str, Callable[[], dict[str, Any]]] = {
            "cost": lambda: cost(llm, folder, args.count or 30),
            "mixed": lambda: mixed(llm, folder, args.count or 200),
            "churn": lambda: churn(folder, llm.config, args.count or 200),
            "stall": lambda: stall(folder, llm.config, served, args.count or 20),
            "kills": lambda: kills(folder, llm.config, args.count or 20),
        }
        result = questions[args.question]()
    print(json.dumps(result))
    return int(not result.get("ok", True))


if __name__ == "__main__":
    sys.exit(main())
