"""Puts four times as much load on a server as it can carry, and checks that it refuses the rest and serves on.

    python -m benchmarks.overload --minutes 10
    python -m benchmarks.overload --minutes 10 --write

First the capacity is measured, with as many clients as the server runs answers. Then requests come at random times
(Poisson), at the rate of the capacity and at `--times` it. All are streams; one in eight has an image. The verdicts:
each request ends whole with 200, or with 429 or 503; the 99th percentiles of the first token and of the whole answer
are at most twice those at capacity; memory grows by less than 1 % after the warm-up (2 minutes, at most a fifth of the
time). `--write` writes figures and docs/overload.svg. The last line is JSON. The exit code is 1 if a verdict does not
hold.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.faults.images import inline, picture
from benchmarks.live.ask import Seen
from benchmarks.live.chart import Panel, draw
from benchmarks.live.page import table, write_between
from benchmarks.live.server import ROOT, Server
from benchmarks.live.watch import Watch, percentile

PAGE, PICTURE = ROOT / "docs" / "faults.md", ROOT / "docs" / "overload.svg"
NUM_SEQS = 8
FLAGS = (
    *("--max-num-seqs", str(NUM_SEQS), "--max-queue", str(NUM_SEQS // 2), "--max-model-len", "1024"),
    *("--kv-cache-memory", str(32 * 2**20), "--image-cache-memory", str(8 * 2**20), "--log-level", "error"),
)
ALLOWED = (200, 429, 503)
Timed = tuple[float, Seen]
"""Seconds since the phase began, and what was seen."""


def new_body(rng: random.Random, image: dict[str, Any]) -> dict[str, Any]:
    """Return a request that nobody has sent before."""
    text = " ".join(str(rng.randrange(1000)) for _ in range(rng.choice((8, 20, 40))))
    content: Any = text
    if rng.random() < 1 / 8:
        content = [*image["messages"][0]["content"][:1], {"type": "text", "text": text}]
    messages = [{"role": "user", "content": content}]
    return {"messages": messages, "max_tokens": 48, "ignore_eos": True, "stream": True, "seed": rng.randrange(1000)}


class Phase:
    """Some time of load, and what its requests saw."""

    def __init__(self, server: Server, seed: str) -> None:
        self.seen: list[Timed] = []
        self._server, self._rng = server, random.Random(seed)
        self._image = inline(picture(300))
        self._began = time.monotonic()

    def _ask(self, body: Any) -> None:
        at = time.monotonic() - self._began
        self.seen.append((at, self._server.ask(body=body)))

    def closed(self, seconds: float, clients: int) -> float:
        """Let clients ask one request after the other; return the answers per second."""

        def work(bodies: Sequence[Any]) -> None:
            for body in bodies:
                if time.monotonic() - self._began > seconds:
                    return
                self._ask(body)

        plenty = [[new_body(self._rng, self._image) for _ in range(2000)] for _ in range(clients)]
        self._began = time.monotonic()
        _run([threading.Thread(target=work, args=(bodies,)) for bodies in plenty])
        return len(self.admitted) / (time.monotonic() - self._began)

    def opened(self, seconds: float, rate: float) -> None:
        """Send requests at random times, whether earlier ones have ended or not."""
        self._began, due, threads = time.monotonic(), 0.0, list[threading.Thread]()
        while (due := due + self._rng.expovariate(rate)) < seconds:
            time.sleep(max(0.0, self._began + due - time.monotonic()))
            threads.append(threading.Thread(target=self._ask, args=(new_body(self._rng, self._image),)))
            threads[-1].start()
        for thread in threads:
            thread.join()

    @property
    def admitted(self) -> list[Seen]:
        """The requests that were answered with 200."""
        return [each for _, each in self.seen if each.status == 200]

    @property
    def wrong(self) -> list[Seen]:
        """The requests that did not end as they must."""
        return [each for _, each in self.seen if each.status not in ALLOWED or not each.is_whole]

    @property
    def figures(self) -> dict[str, Any]:
        """Counts, and times of the admitted in seconds."""
        firsts, wholes = [each.first for each in self.admitted], [each.seconds for each in self.admitted]
        return {
            "requests": len(self.seen),
            "kinds": dict(Counter(each.words for _, each in self.seen)),
            "first_p50": round(percentile(firsts, 0.5), 3),
            "first_p99": round(percentile(firsts, 0.99), 3),
            "whole_p50": round(percentile(wholes, 0.5), 3),
            "whole_p99": round(percentile(wholes, 0.99), 3),
        }


def _run(threads: Sequence[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def measure(server: Server, args: argparse.Namespace) -> dict[str, Any]:
    """Run the phases and return their figures; draw the plot where it is wanted."""
    seconds = 60 * args.minutes
    calm = max(20.0, seconds / 5)
    Phase(server, "warm").closed(calm / 2, NUM_SEQS)
    capacity = Phase(server, "capacity").closed(calm / 2, NUM_SEQS)
    print(f"capacity: {capacity:.2f} requests/s", flush=True)
    even, over = Phase(server, "even"), Phase(server, "over")
    even.opened(calm, capacity)
    print(f"at capacity: {even.figures}", flush=True)
    with Watch(server) as watch:
        over.opened(seconds, args.times * capacity)
    growth = watch.growth(min(120.0, seconds / 5))
    print(f"at {args.times:g}x: {over.figures}; memory {100 * growth:+.2f} %", flush=True)
    for path in filter(None, (args.plot, PICTURE if args.write else None)):
        draw(panels(over, watch, even), path)
    return {
        "capacity": round(capacity, 3),
        "even": even.figures,
        "over": over.figures,
        "wrong": len(even.wrong) + len(over.wrong),
        "growth": round(growth, 5),
        "memory_mib": round(watch.samples[-1][1] / 2**20, 1) if watch.samples else 0.0,
    }


def panels(over: Phase, watch: Watch, even: Phase) -> list[Panel]:
    """Return what the plot shows: answers a second, times of the admitted, and memory."""
    step = max(5.0, max(at for at, _ in over.seen) / 60)
    slots: dict[int, list[Seen]] = {}
    for at, seen in over.seen:
        slots.setdefault(int(at / step), []).append(seen)

    def line(value: Any) -> list[tuple[float, float]]:
        return [(slot * step / 60, value(some)) for slot, some in sorted(slots.items())]

    def times(name: str) -> list[tuple[float, float]]:
        found = line(lambda some: percentile([getattr(each, name) for each in some if each.status == 200], 0.99))
        return [(minute, seconds) for minute, seconds in found if seconds]

    rates = {
        words: line(lambda some, is_good=is_good: sum((each.status == 200) == is_good for each in some) / step)
        for words, is_good in (("answered", True), ("refused", False))
    }
    limit = 2 * even.figures["whole_p99"]
    return [
        Panel("Requests a second", rates),
        Panel("p99 of the answered, s", {"whole": times("seconds"), "first token": times("first")}, limit),
        Panel("Memory of the server, MiB", {"anonymous and shared": watch.line()}),
    ]


def verdicts(found: dict[str, Any]) -> dict[str, bool]:
    """Return what must hold, and whether it does."""
    over, even = found["over"], found["even"]
    return {
        "every request ended whole with 200, or with 429 or 503": found["wrong"] == 0,
        "p99 of the first token is at most twice that at capacity": over["first_p99"] <= 2 * even["first_p99"],
        "p99 of the whole answer is at most twice that at capacity": over["whole_p99"] <= 2 * even["whole_p99"],
        "memory grew by less than 1 %": found["growth"] < 0.01,
    }


def page(found: dict[str, Any], args: argparse.Namespace) -> str:
    """Return the section of the page."""
    rows = [_row("at capacity", found["even"]), _row(f"at {args.times:g}x", found["over"])]
    head = ("load", "requests", "how they ended", "first token, p50", "p99", "whole answer, p50", "p99")
    held = "\n".join(f"- {words}: {'yes' if holds else '**no**'}" for words, holds in verdicts(found).items())
    return (
        f"{args.minutes:g} minutes at {args.times:g} times the capacity of {found['capacity']:.1f} requests/s. "
        f"Memory of the server: {found['memory_mib']:.0f} MiB at the end, {100 * found['growth']:+.2f} % since the "
        "warm-up.\n\n"
        f"{table(head, rows)}\n\n{held}\n\n![Requests, times and memory during the overload](overload.svg)"
    )


def _row(name: str, figures: dict[str, Any]) -> tuple[object, ...]:
    kinds = ", ".join(f"{count} x {kind}" for kind, count in sorted(figures["kinds"].items()))
    times = (f"{figures[key]:.2f} s" for key in ("first_p50", "first_p99", "whole_p50", "whole_p99"))
    return (name, figures["requests"], kinds, *times)


def main() -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="minutes of overload")
    parser.add_argument("--times", type=float, default=4.0, help="how many times the capacity")
    parser.add_argument("--plot", type=Path, help="also draw the plot into this SVG file")
    parser.add_argument("--write", action="store_true", help="write docs/faults.md and docs/overload.svg")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ternvl-overload-") as name, Server(Path(name), *FLAGS) as server:
        found = measure(server.ready(), args)
        found["is_alive"] = server.process.poll() is None
    if args.write:
        write_between(PAGE, "overload", page(found, args))
    held = verdicts(found)
    for words, holds in held.items():
        print(f"{'held' if holds else 'BROKEN'}: {words}")
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    print(json.dumps({"benchmark": "overload", "settings": settings, **found, "held": all(held.values())}))
    return int(not all(held.values()) or not found["is_alive"])


if __name__ == "__main__":
    sys.exit(main())
