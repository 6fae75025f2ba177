"""Compare the packed linear layer with torch's on the shapes of InternVL3-1B: medians of alternating runs.

    python benchmarks/linear.py [--rows 1,8,512] [--repeats 9]

Prints GFLOP/s, and the GB/s at which weights are read. OMP_NUM_THREADS sets the number of threads. The last line is
JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from ternvl.bench import share
from ternvl.kernels.loader import library
from ternvl.kernels.panels import pack
from ternvl.kernels.product import linear

SHAPES = {  # name: (outputs, inputs, numbers of rows to measure)
    "language q, o": (896, 896, (1, 2, 4, 8, 16, 512)),
    "language k, v": (128, 896, (1, 8, 512)),
    "language gate, up": (4864, 896, (1, 2, 4, 8, 16, 512)),
    "language down": (896, 4864, (1, 2, 4, 8, 16, 512)),
    "lm_head": (151_674, 896, (1, 2, 4, 8)),
    "vision qkv": (3072, 1024, (1025,)),
    "vision fc1": (4096, 1024, (1025,)),
    "vision fc2": (1024, 4096, (1025,)),
}


def clock() -> float:
    """Return the time in seconds: with one thread, processor time, which other work does not disturb."""
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


def seconds(run: Callable[[], object], at_least: float) -> float:
    """Return the mean seconds of a call, over as many calls as take `at_least` seconds."""
    count, start = 0, clock()
    while (now := clock()) < start + at_least or not count:
        run()
        count += 1
    return (now - start) / count


def measure(n: int, k: int, m: int, repeats: int) -> dict[str, float]:
    """Return the median seconds of each implementation; the implementations alternate."""
    x, weight = torch.randn(m, k), torch.randn(n, k).bfloat16()
    wide = weight.float()
    narrow_panels, wide_panels = pack(weight), pack(wide)
    ways: dict[str, Callable[[], object]] = {
        "torch": lambda: F.linear(x, wide),
        "float32": lambda: linear(x, wide_panels, n),
        "bfloat16": lambda: linear(x, narrow_panels, n),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, run in ways.items():
            times[name].append(seconds(run, 0.02))
    return {name: statistics.median(values) for name, values in times.items()}


def line(name: str, n: int, k: int, m: int, times: dict[str, float]) -> str:
    """Return one row of the table."""
    cells = [f"{name:18} {n:6} {k:5} {m:5}"]
    for way, value in times.items():
        size = 2 if way == "bfloat16" else 4
        ratio = "" if way == "torch" else f" {times['torch'] / value:4.2f}"
        cells.append(f"{2e-9 * m * n * k / value:5.1f}  {1e-9 * n * k * size / value:5.1f}{ratio}")
    return "   ".join(cells)


def at_best(results: list[dict[str, Any]]) -> str:
    """Describe the best rates of the packed layers as shares of the machine's limits."""
    ways = [(each, each[name], size) for each in results for name, size in (("float32", 4), ("bfloat16", 2))]
    return share(
        bytes_per_s=max(each["n"] * each["k"] * size / seconds for each, seconds, size in ways),
        fp32_per_s=max(2 * each["m"] * each["n"] * each["k"] / seconds for each, seconds, _ in ways),
    )


def main() -> None:
    """Measure; print a table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows",
        type=lambda text: {int(part) for part in text.split(",")},
        help="numbers of rows to measure, separated by commas",
    )
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--only", default="", help="only shapes whose name contains this text")
    options = parser.parse_args()
    loaded = library()
    isa = loaded.isa if loaded else "torch"
    results = []
    print(f"kernels: {isa}, threads: {torch.get_num_threads()}")
    print(f"{'layer':18} {'N':>6} {'K':>5} {'M':>5}  {'torch':>13}  {'packed float32':>18}  {'packed bfloat16':>18}")
    for name, (n, k, rows) in SHAPES.items():
        for m in rows:
            if (options.rows and m not in options.rows) or options.only not in name:
                continue
            times = measure(n, k, m, options.repeats)
            results.append({"layer": name, "n": n, "k": k, "m": m, **times})
            print(line(name, n, k, m, times), flush=True)
    print("columns: GFLOP/s, GB/s, torch's time divided by this one's")
    if results:
        print("at best: " + at_best(results))
    print(json.dumps({"benchmark": "linear", "isa": isa, "threads": torch.get_num_threads(), "results": results}))


if __name__ == "__main__":
    main()
