"""Measure what it costs that the server decodes images in worker processes.

    python -m benchmarks.decoding

Three images are decoded and cut in this process and by the pool in turn, and the medians are compared. Then new pools
decode one image each, which includes the start of a worker, and new servers of the embedded model answer twice
about an image, the first time without a worker that is ready. The last line is JSON.
"""

from __future__ import annotations

import argparse
import base64
import json
import statistics
import time
from collections.abc import Callable
from io import BytesIO

import httpx
import numpy as np
from PIL import Image

from benchmarks.disconnects import serving
from ternvl import embedded
from ternvl.config import ServerConfig
from ternvl.limits import ImageLimits
from ternvl.llm import LLM
from ternvl.prompt.decoding.pool import DecoderPool
from ternvl.prompt.images import decode_tiles
from ternvl.prompt.tiling import TileSettings

SIZES = ((400, 300), (1155, 866), (4000, 3000))
SETTINGS = TileSettings(1, 12, thumbnail=True, side=448)
LIMITS = ImageLimits()


def jpeg(width: int, height: int) -> bytes:
    """Return a JPEG with shapes of all sizes, of about 2 bits a pixel."""
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 256, (height // step + 1, width // step + 1, 3), np.uint8) for step in (97, 17, 5)]
    layers = [np.asarray(Image.fromarray(each).resize((width, height)), dtype=np.float32) for each in coarse]
    data = BytesIO()
    Image.fromarray(np.mean(layers, axis=0).astype(np.uint8)).save(data, "JPEG", quality=85)
    return data.getvalue()


def seconds(work: Callable[[], object]) -> float:
    """Return how long some work takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def medians(data: bytes, pool: DecoderPool, rounds: int) -> tuple[float, float]:
    """Return the median times of decoding in this process and by the pool, in milliseconds."""
    here, there = [], []
    for _ in range(rounds):
        here.append(seconds(lambda: decode_tiles(data, SETTINGS, LIMITS, "image")))
        there.append(seconds(lambda: pool.decode(data, SETTINGS, "image", "client", "request")))
    return 1000 * statistics.median(here), 1000 * statistics.median(there)


def first(data: bytes) -> float:
    """Return the time in milliseconds from the making of a pool to its first tiles."""
    pool = DecoderPool(1, LIMITS, 60.0)
    took = seconds(lambda: pool.decode(data, SETTINGS, "image", "client", "request"))
    pool.close()
    return 1000 * took


def answers(llm: LLM, data: bytes) -> tuple[float, float]:
    """Return the times of a new server's first answer about an image and of a later one, in milliseconds."""
    url = "data:image/jpeg;base64," + base64.b64encode(data).decode()
    turn = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}
    bodies = [{"messages": [turn], "max_tokens": 1, "cache_salt": salt} for salt in ("one", "two")]
    with serving(llm, ServerConfig(port=0, log_level="error")) as (host, port):
        path = f"http://{host}:{port}/v1/chat/completions"
        first, later = (seconds(lambda body=body: httpx.post(path, json=body, timeout=60)) for body in bodies)
    return 1000 * first, 1000 * later


def main() -> None:
    """Measure, and print a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="decodings of each image")
    rounds = parser.parse_args().rounds
    pool = DecoderPool(1, LIMITS, 60.0)
    found = {}
    for size in SIZES:
        data = jpeg(*size)
        here, there = medians(data, pool, rounds)
        found[f"{size[0]} x {size[1]}"] = {"here": here, "pool": there}
        print(f"{size[0]} x {size[1]}: {here:.1f} ms in this process, {there:.1f} ms by the pool ({there / here:.2f})")
    pool.close()
    data = jpeg(*SIZES[1])
    start = statistics.median(first(data) for _ in range(9))
    print(f"the first image of a pool: {start:.0f} ms")
    llm = LLM(embedded.MODEL)
    pairs = [answers(llm, data) for _ in range(9)]
    begun, later = (statistics.median(each) for each in zip(*pairs, strict=True))
    print(f"an answer about an image: the first of a server {begun:.0f} ms, a later one {later:.0f} ms")
    print(json.dumps({"ms": found, "first_of_pool": start, "first_answer": begun, "later_answer": later}))


if __name__ == "__main__":
    main()
