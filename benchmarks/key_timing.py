"""Measure whether the time of an answer tells one key what another key has asked.

    python -m benchmarks.key_timing
    python -m benchmarks.key_timing --trials 400 --model DIR

In each trial, one key asks something new: a long text, an image or a schema. Then another key asks either the same or
something new of the same kind, and its time is taken. The two groups of times are compared by a rank test
(Mann-Whitney). The control lets the same key ask again, where its cache must show. The last line is JSON. The exit code
is 1 if times differ between keys, or if the control shows no difference where it must.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import httpx
from PIL import Image

from benchmarks.disconnects import serving
from ternvl.config import ServerConfig
from ternvl.llm import LLM

KINDS = ("text", "image", "grammar")
SIGNIFICANT = 0.001
"""A p-value below this counts as a difference; three tests of nothing find one in 333 runs."""
KEYS = "[[key]]\nname = 'victim'\nkey = 'victim'\n[[key]]\nname = 'prober'\nkey = 'prober'\n"


def new_body(kind: str, rng: random.Random) -> dict[str, Any]:
    """Return a request that nobody has sent before, and whose cached work would be noticed."""
    words = " ".join(f"{rng.randrange(10**6)}" for _ in range(40 if kind == "text" else 2))
    parts: list[dict[str, Any]] = [{"type": "text", "text": words}]
    if kind == "image":
        data = io.BytesIO()
        Image.frombytes("RGB", (64, 64), rng.randbytes(64 * 64 * 3)).resize((448, 448)).save(data, "PNG")
        url = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
        parts.insert(0, {"type": "image_url", "image_url": {"url": url}})
    body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 1, "temperature": 0}
    if kind == "grammar":
        patterns = [f"[a-z]{{{rng.randrange(9)},40}}{rng.randrange(10**9)}" for _ in range(200)]
        properties = {f"p{index}": {"type": "string", "pattern": each} for index, each in enumerate(patterns)}
        body["guided_json"] = {"type": "object", "properties": properties, "required": list(properties)}
    return body


def seconds_of(http: httpx.Client, key: str, body: dict[str, Any]) -> float:
    """Ask, and return the seconds until the answer."""
    content = json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    began = time.perf_counter()
    http.post("/v1/chat/completions", content=content, headers=headers).raise_for_status()
    return time.perf_counter() - began


def measure(http: httpx.Client, kind: str, prober: str, trials: int, rng: random.Random) -> tuple[list[float], ...]:
    """Return the prober's times for what was asked before, and for what was not, in random order."""
    times: tuple[list[float], list[float]] = ([], [])
    order = [number % 2 for number in range(trials)]
    rng.shuffle(order)
    for is_new in order:
        asked = new_body(kind, rng)
        seconds_of(http, "victim", asked)
        times[is_new].append(seconds_of(http, prober, new_body(kind, rng) if is_new else asked))
    return times


def rank_test(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Return the probability that a value of `first` is below one of `second`, and the two-sided p-value.

    Source: Mann and Whitney 1947, with the normal approximation. Times do not tie.
    """
    below = sum((a < b) + 0.5 * (a == b) for a in first for b in second)
    num_pairs = len(first) * len(second)
    deviation = math.sqrt(num_pairs * (len(first) + len(second) + 1) / 12)
    score = abs(below - num_pairs / 2) / deviation
    return below / num_pairs, math.erfc(score / math.sqrt(2))


def compare(http: httpx.Client, kind: str, prober: str, trials: int, rng: random.Random) -> dict[str, Any]:
    """Measure one kind and describe the difference."""
    known, new = measure(http, kind, prober, trials, rng)
    faster, p_value = rank_test(known, new)
    medians = [round(1000 * statistics.median(times), 3) for times in (known, new)]
    print(f"{kind:8} asked by {prober:7} known {medians[0]:9.3f} ms, new {medians[1]:9.3f} ms, ", end="")
    print(f"known is faster in {100 * faster:5.1f} % of pairs, p = {p_value:.2g}", flush=True)
    return {"kind": kind, "prober": prober, "median_ms": medians, "faster": round(faster, 4), "p": p_value}


def main() -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint to serve; by default the embedded model")
    parser.add_argument("--trials", type=int, default=60, help="trials of each kind; half of them ask what is known")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with (
        serving(LLM(args.model), ServerConfig(port=0, log_level="error", api_keys=KEYS)) as (host, port),
        httpx.Client(base_url=f"http://{host}:{port}", timeout=600) as http,
    ):
        for kind in KINDS:  # what is done once for all is done before
            seconds_of(http, "victim", new_body(kind, rng))
        pairs = [(kind, prober) for kind in KINDS for prober in ("prober", "victim")]
        found = [compare(http, kind, prober, args.trials, rng) for kind, prober in pairs]
    leaks = [each["kind"] for each in found if each["prober"] == "prober" and each["p"] < SIGNIFICANT]
    blind = [each["kind"] for each in found if each["prober"] == "victim" and each["p"] >= SIGNIFICANT]
    print(
        json.dumps({"benchmark": "key_timing", "settings": vars(args), "found": found, "leaks": leaks, "blind": blind})
    )
    return int(bool(leaks or blind))


if __name__ == "__main__":
    sys.exit(main())
