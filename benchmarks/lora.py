"""What LoRA adapters cost, and what they must not: change others' answers, leak memory, or be half there.

    python benchmarks/random_checkpoint.py DIR --layout original --tokenizer TOKENIZER
    python -m benchmarks.lora cost DIR       # a decode step of 8 sequences, with 8 adapters and with none
    python -m benchmarks.lora mixed          # 200 requests with 5 adapters and none: alone and together
    python -m benchmarks.lora churn          # 200 adapters loaded, used and unloaded while streams run
    python -m benchmarks.lora kills          # a server killed 20 times while it takes and loads adapters

Adapters are random ones of rank 16 for every module that may have one. Without DIR the embedded model serves. The last
line is JSON; exit code 1 where something is not as it must be.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import torch
from safetensors.torch import save_file

from benchmarks.invariance import alone, differing, engine_of, requests_of, together
from ternvl import LLM
from ternvl.config import EngineConfig, ModelConfig
from ternvl.engine.engine import Engine
from ternvl.model.internvl import InternVL
from ternvl.model.lora_files import linears, read
from ternvl.types import Prompt, Request, SamplingParams

RANK = 16
ASK = {"messages": [{"role": "user", "content": "Name the european capitals"}], "temperature": 0}


def write_adapter(
    folder: Path, config: ModelConfig, seed: int, *, parts: Sequence[str] = ("language_model.",), rank: int = RANK,
    size: float = 1.0,
) -> Path:  # fmt: skip
    """A random adapter as PEFT would save it, for all linear layers of the decoder, `mlp1.` or `vision_model.`"""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (rows, inputs) in linears(config).items():
        if name.startswith(tuple(parts)) and "lm_head" not in name:
            a = torch.randn(rank, inputs, generator=generator) / inputs**0.5
            b = torch.randn(rows, rank, generator=generator) * size / rank
            tensors[f"base_model.model.{name}.lora_A.weight"] = a
            tensors[f"base_model.model.{name}.lora_B.weight"] = b
    folder.mkdir(parents=True, exist_ok=True)
    values = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def cost(llm: LLM, folder: Path, num_steps: int) -> dict[str, Any]:
    """Engines take turns, one step each, with 8 sequences: over a model that never had an adapter, which one with none
    in use equals, module for module; over one whose adapters are other engines' at this moment; and with adapters."""
    model = llm.engine.model
    never = _twin(model)
    engines = {"never had one": _decoding(never, [None] * 8), "others have adapters": _decoding(model, [None] * 8)}
    for number, name in enumerate(("int8", "bfloat16", "float32")):
        seeds = range(8 * number, 8 * number + 8)  # others for each type: an adapter is known by its files
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
    """The same model with modules of its own over the same tensors."""
    for module in model.modules():
        for pointers in ("description", "native", "adapted"):  # made anew when they are asked for
            module.__dict__.pop(pointers, None)
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def _decoding(model: InternVL, adapters: Sequence[Any]) -> Engine:
    """An engine with a sequence for each adapter, whose prompt is computed already."""
    engine = Engine(model, EngineConfig(max_model_len=1024, kv_cache_memory=2**28), stop_ids=())
    for number, adapter in enumerate(adapters):
        params = SamplingParams(temperature=0, ignore_eos=True)
        prompt = Prompt(tuple(random.Random(number).randrange(300, 600) for _ in range(8)))
        engine.add(Request(f"s{number}", prompt, params, adapter=adapter))
    while any(sequence.num_uncomputed > 1 for sequence in engine.scheduler.waiting + engine.scheduler.running):
        engine.step()
    return engine


def mixed(llm: LLM, folder: Path, count: int) -> dict[str, Any]:
    """As `benchmarks/invariance.py`, each request with one of 5 adapters or none."""
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


@contextmanager
def server(*flags: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`ternvl serve` on a free port, and its address."""
    command = [sys.executable, "-m", "ternvl", "serve", "--port", "0", "--log-level", "error", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            address = next(line for line in map(bytes.decode, process.stdout) if " is served at " in line)
            yield process, address.split()[-1].removesuffix("/v1")
        finally:
            process.kill()


def churn(folder: Path, config: ModelConfig, count: int) -> dict[str, Any]:
    """Streams of the model and of an adapter that stays run all the while; each adapter answers once."""
    stays, given = write_adapter(folder / "stays", config, 1_000), folder / "given"
    stop, failed, num_streams = threading.Event(), list[str](), 0
    gaps: list[float] = []

    def streaming(url: str, model: str) -> None:
        nonlocal num_streams
        with httpx.Client(base_url=url, timeout=120) as http:
            while not stop.is_set():
                failure = _stream(http, model, gaps)
                num_streams += 1
                failed.extend([failure] if failure else [])

    # A KV cache that the first streams fill: memory that is touched later would look like a leak.
    small = ("--max-model-len", "512", "--kv-cache-memory", str(8 * 2**20))
    with server("--lora", f"stays={stays}", *small) as (process, url), httpx.Client(base_url=url, timeout=120) as http:
        names = [http.get("/v1/models").json()["data"][0]["id"], "stays"] * 2
        threads = [threading.Thread(target=streaming, args=(url, name)) for name in names]
        for thread in threads:
            thread.start()
        memory = []
        for number in range(-10, count):  # the first ten bring what every server takes once
            write_adapter(given, config, number + 10)
            for path, fields in (
                ("/v1/load_lora_adapter", {"lora_name": f"n{number + 10}", "lora_path": str(given)}),
                ("/v1/chat/completions", ASK | {"model": f"n{number + 10}", "max_tokens": 4}),
                ("/v1/unload_lora_adapter", {"lora_name": f"n{number + 10}"}),
            ):
                http.post(path, json=fields).raise_for_status()
            memory.append(_resident_bytes(process.pid))
            if number == -1 or number % 50 == 49:
                print(f"after {number + 1}: {memory[-1] / 2**20:.1f} MiB, {num_streams} streams ended", flush=True)
        stop.set()
        for thread in threads:
            thread.join()
    growth = memory[-1] / memory[10] - 1
    result = {"adapters": count, "first_mib": memory[10] / 2**20, "last_mib": memory[-1] / 2**20, "growth": growth}
    result |= {
        "streams": num_streams,
        "failed": failed[:3],
        "longest_gap_s": max(gaps),
        "median_gap_s": statistics.median(gaps),
    }
    return result | {"ok": growth < 0.02 and not failed}


def _stream(http: httpx.Client, model: str, gaps: list[float]) -> str:
    """What is wrong with a stream; "" where nothing is."""
    body = ASK | {"model": model, "stream": True, "max_tokens": 64, "ignore_eos": True}
    last, ended = time.perf_counter(), False
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        for line in response.iter_lines():
            if line.startswith("data: "):
                now = time.perf_counter()
                gaps.append(now - last)
                last = now
            if '"error"' in line:
                return line
            ended |= line == "data: [DONE]"
    return "" if ended else "the stream broke off"


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def kills(folder: Path, config: ModelConfig, count: int) -> dict[str, Any]:
    """Each server is killed at a random moment of an upload or a load; the next one lists only whole adapters."""
    store = folder / "store"
    store.mkdir()
    given = [write_adapter(folder / f"given{seed}", config, seed, parts=("",), rank=64) for seed in range(2)]
    flags = ("--lora-dir", str(store), "--allow-lora-upload", "--admin-key", "admin")
    rng, listed, broken, interrupted = random.Random(0), list[int](), list[str](), 0
    for turn in range(count + 1):
        with server(*flags) as (process, url), httpx.Client(base_url=url, timeout=120) as http:
            names = [card["id"] for card in http.get("/v1/models").json()["data"] if "parent" in card]
            listed.append(len(names))
            for name in names:
                answer = http.post("/v1/chat/completions", json=ASK | {"model": name, "max_tokens": 2})
                broken.extend([] if answer.is_success else [f"{turn}: {name}: {answer.text}"])
            if turn == count:
                break
            threading.Timer(rng.uniform(0, 1.5), os.kill, (process.pid, signal.SIGKILL)).start()
            try:
                while True:
                    _upload(http, rng.choice(given), f"n{rng.randrange(3)}")
                    body = {"lora_name": "loaded", "lora_path": str(given[0])}
                    http.post("/v1/load_lora_adapter", json=body, headers={"Authorization": "Bearer admin"})
            except httpx.TransportError:
                interrupted += 1
        print(f"{turn + 1}: {names} were listed", flush=True)
    left = len(list((store / ".ternvl").iterdir()))
    result = {"kills": count, "interrupted": interrupted, "listed": listed, "broken": broken, "left_folders": left}
    return result | {"ok": not broken and interrupted == count and max(listed) > 0}


def _upload(http: httpx.Client, folder: Path, name: str) -> None:
    files = {each.name: each.read_bytes() for each in folder.iterdir()}
    headers = {"Authorization": "Bearer admin"}
    http.post("/v1/upload_lora_adapter", data={"lora_name": name}, files=files, headers=headers).raise_for_status()


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=("cost", "mixed", "churn", "kills"))
    parser.add_argument("model", nargs="?", help="folder of the checkpoint for `cost`")
    parser.add_argument("--count", type=int, help="steps, requests, adapters or kills")
    parser.add_argument("--quantization", default="none", help="of the base, in `cost` and `mixed`")
    args = parser.parse_args()
    llm = LLM(args.model, quantization=args.quantization, max_model_len=2048)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        questions: dict[str, Callable[[], dict[str, Any]]] = {
            "cost": lambda: cost(llm, folder, args.count or 30),
            "mixed": lambda: mixed(llm, folder, args.count or 200),
            "churn": lambda: churn(folder, llm.config, args.count or 200),
            "kills": lambda: kills(folder, llm.config, args.count or 20),
        }
        result = questions[args.question]()
    print(json.dumps(result))
    return int(not result.get("ok", True))


if __name__ == "__main__":
    sys.exit(main())
