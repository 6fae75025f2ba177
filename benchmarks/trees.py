"""Compare the speed of the servers of two source trees, one of which is this one.

    git worktree add --detach ../before v0.1.0
    python -m benchmarks.trees ../before
    python -m benchmarks.trees ../before --model DIR --rounds 5 -- --quantization int8

Both servers run, and one of them at a time has work, in turns, so that both meet the same state of the machine. Each
prompt is new. The median over the rounds of each tree, and the median of the ratios within a round, are printed for the
first token of a text and of an image, one stream, and eight streams. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.faults.images import inline, picture
from benchmarks.live.ask import Seen
from benchmarks.live.page import table
from benchmarks.live.server import ROOT, Server

STREAMS = 8


def new_body(rng: random.Random, words: int, max_tokens: int, side: int = 0) -> dict[str, Any]:
    """Return a request that nobody has sent before; with an image of so many pixels a side unless `side` is 0."""
    text = " ".join(str(rng.randrange(1000)) for _ in range(words))
    content: Any = text
    if side:
        image = inline(picture(side))["messages"][0]["content"][0]
        content = [image, {"type": "text", "text": text}]
    messages = [{"role": "user", "content": content}]
    return {"messages": messages, "max_tokens": max_tokens, "ignore_eos": True, "stream": True, "temperature": 0}


class Bench:
    """What is measured at one server. Each method returns one figure."""

    def __init__(self, server: Server, max_tokens: int, seed: int) -> None:
        """Both servers get the same prompts: those of the same seed."""
        self._server, self._max_tokens, self._rng = server, max_tokens, random.Random(seed)

    def _ask(self, body: dict[str, Any]) -> Seen:
        seen = self._server.ask(body=body, seconds=600.0)
        if not seen.is_whole or seen.status != 200:
            raise SystemExit(f"A server answered {seen.words}: {seen.message}")
        return seen

    def text(self) -> float:
        """Milliseconds until the first token of a text."""
        return 1e3 * self._ask(new_body(self._rng, 60, 2)).first

    def image(self) -> float:
        """Milliseconds until the first token about an image of one tile."""
        return 1e3 * self._ask(new_body(self._rng, 4, 2, 448)).first

    def one(self) -> float:
        """Tokens a second of one stream, after its first token."""
        seen = self._ask(new_body(self._rng, 4, self._max_tokens))
        return (self._max_tokens - 1) / (seen.seconds - seen.first)

    def eight(self) -> float:
        """Tokens a second of eight streams, with their prompts."""
        bodies = [new_body(self._rng, 20, self._max_tokens) for _ in range(STREAMS)]
        threads = [threading.Thread(target=self._ask, args=(body,)) for body in bodies]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return STREAMS * self._max_tokens / (time.monotonic() - began)


MEASURES: dict[str, tuple[str, Callable[[Bench], float]]] = {
    "first token of a text": ("ms", Bench.text),
    "first token of an image": ("ms", Bench.image),
    "one stream": ("tokens/s", Bench.one),
    "eight streams": ("tokens/s", Bench.eight),
}


def measure(servers: Sequence[Server], rounds: int, repeats: int, max_tokens: int) -> dict[str, list[list[float]]]:
    """Return of each measure, and of each server, the figures of all rounds, each the median of `repeats`."""
    found: dict[str, list[list[float]]] = {name: [[] for _ in servers] for name in MEASURES}
    for number in range(-1, rounds):  # the first round warms up
        order = list(enumerate(servers))
        for name, (_, method) in MEASURES.items():
            for index, server in order if number % 2 else reversed(order):
                bench = Bench(server, max_tokens, number)
                figure = statistics.median(method(bench) for _ in range(repeats))
                if number >= 0:
                    found[name][index].append(figure)
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return found


def summary(found: dict[str, list[list[float]]]) -> dict[str, dict[str, float]]:
    """Return medians, the median of the ratios (this tree to the other), and their quartiles."""
    rows = {}
    for name, (other, this) in found.items():
        ratios = [mine / theirs for mine, theirs in zip(this, other, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows[name] = {
            "other": round(statistics.median(other), 3),
            "this": round(statistics.median(this), 3),
            "ratio": round(middle, 4),
            "low": round(low, 4),
            "high": round(high, 4),
        }
    return rows


def main() -> int:
    """Run the comparison; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the root of the other tree")
    parser.add_argument("--model", help="the model of both servers; without it, each tree's embedded one")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--repeats", type=int, default=5, help="requests of each kind in a round")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.epilog = "What follows -- are flags of both servers."
    given = [*sys.argv[1:], "--"]
    args = parser.parse_args(given[: given.index("--")])
    args.flags = given[given.index("--") + 1 : -1]
    flags = (*filter(None, [args.model]), "--max-model-len", "2048", "--log-level", "error", *args.flags)
    with tempfile.TemporaryDirectory(prefix="ternvl-trees-") as name, ExitStack() as stack:
        trees = (args.other.resolve(), ROOT)
        servers = [stack.enter_context(Server(Path(name), *flags, tree=tree)) for tree in trees]
        for server in servers:
            server.ready()
        rows = summary(measure(servers, max(2, args.rounds), args.repeats, args.max_tokens))
    shown = [(name, MEASURES[name][0], *row.values()) for name, row in rows.items()]
    print(table(("what", "unit", "other tree", "this tree", "ratio", "lower quartile", "upper quartile"), shown))
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    print(json.dumps({"benchmark": "trees", "settings": settings, "found": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
