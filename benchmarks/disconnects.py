"""Check that the engine frees all resources of clients that disconnect at random moments.

    python benchmarks/disconnects.py --requests 1000
    python benchmarks/disconnects.py --requests 1000 --model DIR

Requests are sent over real sockets: streamed or not, with images or not, for one answer or several, some with only half
of their body. Most clients close or reset the connection before their answer ends. Afterwards the engine is idle, its
invariants are checked, and resources that are still held are printed. The last line is JSON. The exit code is 1 if
anything is still held.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from PIL import Image

from ternvl.config import ServerConfig
from ternvl.engine.engine import Engine
from ternvl.llm import LLM
from ternvl.server import bind, create_app

IDLE_SECONDS = 120


def image_part(rng: random.Random) -> dict[str, Any]:
    """Return one of eight small images, so that several requests share an image at the same time."""
    data = io.BytesIO()
    Image.new("RGB", (40, 40), (rng.randrange(8) * 30, 0, 0)).save(data, "PNG")
    return {
        "type": "image_url",
        "image_url": {"url": "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()},
    }


def raw_request(rng: random.Random) -> bytes:
    """Return a request as bytes; one in ten lacks half of its body."""
    images = [image_part(rng) for _ in range(rng.choice([0, 0, 1, 2]))]
    text = {"type": "text", "text": "word " * rng.randrange(1, 30)}
    body = {
        "messages": [{"role": "user", "content": [*images, text]}],
        "max_tokens": rng.randrange(1, 100),
        "ignore_eos": True,
        "stream": rng.random() < 0.5,
        "n": rng.choice([1, 1, 1, 2, 3]),
    }
    data = json.dumps(body).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nConnection: close\r\n"
    sent = data[: len(data) // 2] if rng.random() < 0.1 else data
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + sent


async def visit(address: tuple[str, int], rng: random.Random, longest_stay: float) -> str:
    """Run one client; return how it ended: "left", or "status" with the code."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(raw_request(rng))
    stay = rng.choice([0.0, 0.1 * rng.random(), rng.random(), 10.0]) * longest_stay
    try:
        async with asyncio.timeout(stay):
            return "status " + (await reader.read()).split(b" ", 2)[1].decode()
    except TimeoutError:
        return "left"
    finally:
        if rng.random() < 0.5:
            writer.transport.abort()
        writer.close()


async def attack(
    address: tuple[str, int], *, requests: int, concurrency: int, longest_stay: float, seed: int
) -> Counter[str]:
    """Run `requests` clients, `concurrency` at a time; count how they ended."""
    ends: Counter[str] = Counter()
    numbers = iter(range(requests))

    async def client() -> None:
        for number in numbers:
            ends[await visit(address, random.Random(f"{seed} {number}"), longest_stay)] += 1

    await asyncio.gather(*(client() for _ in range(concurrency)))
    return ends


def held(engine: Engine) -> dict[str, int]:
    """Wait until the engine is idle; return the resources that it still holds, without its caches."""
    deadline = time.monotonic() + IDLE_SECONDS
    while engine.has_work and time.monotonic() < deadline:
        time.sleep(0.01)
    if not engine.has_work:
        engine.check_integrity()
    stats = engine.stats()
    return {
        "sequences": stats.num_running + stats.num_waiting,
        "blocks": stats.num_blocks - stats.num_free_blocks,
        "vision_entries": stats.num_held_images,
    }


@contextmanager
def serving(llm: LLM, config: ServerConfig) -> Iterator[tuple[str, int]]:
    """Run a server in this process, so that its engine can be inspected; yield its address."""
    with bind(config) as sock:
        server = uvicorn.Server(uvicorn.Config(create_app(llm, config), log_level="error", timeout_graceful_shutdown=5))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.01)
            yield sock.getsockname()[:2]
        finally:
            server.should_exit = True
            thread.join()


def main() -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint to serve; by default the embedded model")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=24)
    parser.add_argument(
        "--max-num-seqs",
        type=int,
        default=4,
        help="running sequences; fewer than clients, so that some leave while they wait",
    )
    parser.add_argument(
        "--longest-stay",
        type=float,
        default=1.0,
        help="seconds that clients stay at most; a quarter of them stay ten times as long",
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    llm = LLM(args.model, max_num_seqs=args.max_num_seqs)
    assert isinstance(llm.engine, Engine)
    load = {name: value for name, value in vars(args).items() if name not in ("model", "max_num_seqs")}
    with serving(llm, ServerConfig(port=0, log_level="error")) as address:
        ends = asyncio.run(attack(address, **load))
        left = time.perf_counter()
        rest = held(llm.engine)
        seconds = time.perf_counter() - left
    print(", ".join(f"{count} {end}" for end, count in sorted(ends.items())))
    print(f"after {seconds:.3f} s held: " + ", ".join(f"{count} {name}" for name, count in rest.items()))
    result = {"benchmark": "disconnects", "settings": vars(args), "ends": ends, "idle_after_s": round(seconds, 3)}
    print(json.dumps(result | {"held": rest, "steps": llm.engine.stats().num_steps}))
    return int(any(rest.values()))


if __name__ == "__main__":
    sys.exit(main())
