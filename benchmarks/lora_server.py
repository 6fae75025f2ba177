"""The part of `benchmarks/lora.py` that runs a server: loads and unloads adapters while it streams, and kills it."""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.random_adapter import write_adapter
from ternvl.config import ModelConfig

ASK = {"messages": [{"role": "user", "content": "Name the european capitals"}], "temperature": 0}


@contextmanager
def server(*flags: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run `ternvl serve` on a free port; yield the process and its address."""
    command = [sys.executable, "-m", "ternvl", "serve", "--port", "0", "--log-level", "error", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            address = next(line for line in map(bytes.decode, process.stdout) if " is served at " in line)
            yield process, address.split()[-1].removesuffix("/v1")
        finally:
            process.kill()


def churn(folder: Path, config: ModelConfig, count: int) -> dict[str, Any]:
    """Load, use and unload adapters while streams of the model and of a permanent adapter run."""
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

    # The first streams fill this KV cache, since memory that is first used later would look like a leak.
    small = ("--max-model-len", "512", "--kv-cache-memory", str(8 * 2**20), "--allowed-lora-dirs", str(folder))
    with server("--lora", f"stays={stays}", *small) as (process, url), httpx.Client(base_url=url, timeout=120) as http:
        names = [http.get("/v1/models").json()["data"][0]["id"], "stays"] * 2
        threads = [threading.Thread(target=streaming, args=(url, name)) for name in names]
        for thread in threads:
            thread.start()
        memory = []
        for number in range(-20, count):  # the first twenty allocate what a server needs once, and fill the KV cache
            write_adapter(given, config, number + 20)
            for path, fields in (
                ("/v1/load_lora_adapter", {"lora_name": f"n{number + 20}", "lora_path": str(given)}),
                ("/v1/chat/completions", ASK | {"model": f"n{number + 20}", "max_tokens": 4}),
                ("/v1/unload_lora_adapter", {"lora_name": f"n{number + 20}"}),
            ):
                http.post(path, json=fields).raise_for_status()
            memory.append(_resident_bytes(process.pid))
            if number == -1 or number % 50 == 49:
                print(f"after {number + 1}: {memory[-1] / 2**20:.1f} MiB, {num_streams} streams ended", flush=True)
        stop.set()
        for thread in threads:
            thread.join()
    growth = memory[-1] / memory[20] - 1
    result = {"adapters": count, "first_mib": memory[20] / 2**20, "last_mib": memory[-1] / 2**20, "growth": growth}
    result |= {
        "streams": num_streams,
        "failed": failed[:3],
        "longest_gap_s": max(gaps),
        "median_gap_s": statistics.median(gaps),
    }
    return result | {"ok": growth < 0.02 and not failed}


def stall(folder: Path, config: ModelConfig, model: Sequence[str], count: int) -> dict[str, Any]:
    """Measure the longest gap of four streams, without and with adapters being loaded at the same time."""
    given = [write_adapter(folder / f"given{seed}", config, seed) for seed in range(2)]
    stop, gaps, failed = threading.Event(), list[float](), list[str]()

    def streaming(url: str, model: str) -> None:
        with httpx.Client(base_url=url, timeout=120) as http:
            while not stop.is_set():
                failure = _stream(http, model, gaps)
                failed.extend([failure] if failure else [])

    flags = ("--max-model-len", "2048", "--allowed-lora-dirs", str(folder))
    with server(*model, *flags) as (_, url), httpx.Client(base_url=url, timeout=120) as http:
        name = http.get("/v1/models").json()["data"][0]["id"]
        threads = [threading.Thread(target=streaming, args=(url, name)) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(5)
        result: dict[str, list[float]] = {}
        seconds, step = [], statistics.median(gaps)
        for turn in range(count):  # alternate stretches of equal length without and with loading
            for kind in ("loading", "quiet"):
                del gaps[:]
                begin = time.perf_counter()
                if kind == "loading":
                    body = {"lora_name": f"n{turn}", "lora_path": str(given[turn % 2])}
                    http.post("/v1/load_lora_adapter", json=body).raise_for_status()
                    seconds.append(time.perf_counter() - begin)
                time.sleep(max(0.0, begin + max(seconds) + 0.2 - time.perf_counter()))
                result.setdefault(kind, []).append(max(gaps, default=0.0))
            http.post("/v1/unload_lora_adapter", json={"lora_name": f"n{turn}"}).raise_for_status()
        stop.set()
        for thread in threads:
            thread.join()
    longest = {kind: {"median_s": statistics.median(each), "most_s": max(each)} for kind, each in result.items()}
    load = {"median_s": statistics.median(seconds), "most_s": max(seconds)}
    # The bound is one step above a quiet stretch, in the median, since other work on the machine causes single gaps.
    ok = not failed and longest["loading"]["median_s"] <= longest["quiet"]["median_s"] + step
    return {"loads": count, "load": load, "step_s": step, "longest_gap": longest, "failed": failed[:3], "ok": ok}


def _stream(http: httpx.Client, model: str, gaps: list[float]) -> str:
    """Read one stream; return what is wrong with it, or an empty string."""
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
    """Kill servers at random moments of an upload or a load; check that the next one lists only complete adapters."""
    store = folder / "store"
    store.mkdir()
    given = [write_adapter(folder / f"given{seed}", config, seed, parts=("",), rank=64) for seed in range(2)]
    flags = (
        "--lora-dir",
        str(store),
        "--allow-lora-upload",
        "--admin-key",
        "admin",
        "--allowed-lora-dirs",
        str(folder),
    )
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
