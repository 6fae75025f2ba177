"""The worker of llama.cpp: `worker_llamacpp.py MODEL MMPROJ SERVER one|many`.

It runs a llama-server on a free port, with one slot or eight. The server's prompt cache is off.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from protocol import Answer, Ask, Contestant, UnavailableError, serve

START_SECONDS = 120
CONTEXT = 32_768


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def end_with_parent() -> None:
    """Make the server end with this worker, however the worker ends (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def start(model: str, projector: str, server: str, mode: str) -> tuple[subprocess.Popen[bytes], str]:
    """Start the server, wait until it is ready, and return it with its address."""
    port = free_port()
    threads, slots = str(len(os.sched_getaffinity(0))), "1" if mode == "one" else "8"
    command = [server, "-m", model, "--mmproj", projector, "--host", "127.0.0.1", "--port", str(port)]
    command += ["-t", threads, "-tb", threads, "-c", str(CONTEXT), "-np", slots, "-fa", "on", "--no-webui"]
    command += ["--cache-ram", "0", "--log-disable"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=end_with_parent)
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url + "/health", timeout=5):
            return process, url
        time.sleep(0.02)
    process.kill()
    raise UnavailableError("llama-server did not start")


def body(ask: Ask) -> dict[str, Any]:
    """Return a Chat Completions request with a greedy answer of forced length."""
    content: list[dict[str, Any]] = [{"type": "text", "text": ask.text}]
    if ask.image:
        data = base64.b64encode(Path(ask.image).read_bytes()).decode()
        content.insert(0, {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64," + data}})
    return {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": ask.max_tokens,
        "ignore_eos": True,
        "samplers": ["top_k"],
        "top_k": 1,
        "cache_prompt": False,
    }


def post(url: str, ask: Ask, begin: float) -> Answer:
    """Return one answer, with the server's times of its tokens: streamed text arrives only in whole characters."""
    data = json.dumps(body(ask)).encode()
    request = urllib.request.Request(url + "/v1/chat/completions", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=3600) as response:
            answer = json.load(response)
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"status {error.code}: {error.read().decode(errors='replace')[:200]}") from error
    end = time.perf_counter() - begin
    usage = answer["usage"]
    first = end - answer["timings"]["predicted_ms"] / 1000 if usage["completion_tokens"] > 1 else end
    return Answer(usage["prompt_tokens"], usage["completion_tokens"], first, end)


def load() -> Contestant:
    """Start the server, which ends with this process."""
    process, url = start(*sys.argv[1:5])

    def answer(asks: list[Ask]) -> list[Answer]:
        begin = time.perf_counter()
        with ThreadPoolExecutor(len(asks)) as pool:
            return list(pool.map(lambda ask: post(url, ask, begin), asks))

    version = Path(sys.argv[3]).with_name("version.txt").read_text(encoding="utf-8").strip()
    return Contestant(answer, version, pid=process.pid, close=process.terminate)


if __name__ == "__main__":
    serve(load)
