"""Lets mixed work run on a server for a long time, and checks that nothing fails, changes or grows.

    python -m benchmarks.soak --minutes 30
    python -m benchmarks.soak --minutes 30 --write

Clients send, one request after the other, text, images of several sizes, tools, structured output, requests to the
adapters french and inventory, streams that they leave or read slowly, and bad requests. The verdicts: every request
ends as its kind must, the same greedy request always has the same answer, the engine is idle afterwards, and memory
grows by less than 1 % after the warm-up (a third of the time). `--write` writes figures and docs/soak.svg. The last
line is JSON. The exit code is 1 if a verdict does not hold.
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
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.faults.clients import is_idle, leave
from benchmarks.faults.images import inline, picture
from benchmarks.fuzz.requests import SCHEMA, TOOL
from benchmarks.live.ask import HELLO, LONG, Seen
from benchmarks.live.chart import Panel, draw
from benchmarks.live.page import table, write_between
from benchmarks.live.server import ROOT, Server, eventually
from benchmarks.live.watch import Watch, percentile

PAGE, PICTURE = ROOT / "docs" / "faults.md", ROOT / "docs" / "soak.svg"
FLAGS = (
    *("--lora", "french", "--lora", "inventory", "--max-num-seqs", "8", "--max-model-len", "2048"),
    *("--kv-cache-memory", str(24 * 2**20), "--image-cache-memory", str(8 * 2**20), "--log-level", "error"),
)
SIDES = (64, 300, 448, 900)
WORDS = ("apple", "river", "stone", "cloud", "window", "bread", "silver", "garden", "letter", "music")
BAD: tuple[tuple[str, Any, int], ...] = (
    ("/v1/chat/completions", {"messages": []}, 400),
    ("/v1/chat/completions", b"{", 400),
    ("/v1/chat/completions", {**HELLO, "temperature": 9}, 400),
    ("/v1/chat/completions", {**HELLO, "model": "nobody"}, 404),
    ("/v1/nothing", {}, 404),
    ("/v1/chat/completions", inline(b"no image"), 400),
    ("/v1/chat/completions", {**HELLO, "guided_regex": "("}, 400),
)


def conversation(rng: random.Random, **fields: Any) -> dict[str, Any]:
    """Return a greedy request, one of some hundreds, so that each is asked several times."""
    text = f"Tell me about the {rng.choice(WORDS)} and the {rng.choice(WORDS)}, number {rng.randrange(4)}."
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 24, "temperature": 0, **fields}


class Work:
    """The kinds of requests. Each sends one and says what is wrong with the answer; an empty text if nothing is."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._answers: dict[str, str] = {}
        self._images = [inline(picture(side)) for side in SIDES]
        self.kinds: dict[str, tuple[int, Callable[[random.Random], tuple[Seen, str]]]] = {
            "text": (4, lambda rng: self.same(conversation(rng))),
            "stream": (3, lambda rng: self.whole(conversation(rng, stream=True))),
            "image": (3, self.image),
            "tools": (2, lambda rng: self.same(conversation(rng, tools=[TOOL], tool_choice="required", max_tokens=60))),
            "structured": (2, lambda rng: self.same(conversation(rng, guided_json=SCHEMA, max_tokens=60))),
            "french": (2, lambda rng: self.same(conversation(rng, model="french"))),
            "inventory": (2, lambda rng: self.same(conversation(rng, model="inventory"))),
            "left": (2, lambda rng: self.left()),
            "slow reader": (1, lambda rng: self.whole(LONG, pace=lambda number: time.sleep(0.01))),
            "bad": (2, self.bad),
        }

    def same(self, body: dict[str, Any]) -> tuple[Seen, str]:
        """Ask, and compare with the earlier answer to the same request."""
        seen = self.server.ask(body=body)
        if seen.status != 200:
            return seen, f"{seen.words} {seen.message}"
        message = json.loads(seen.body)["choices"][0]["message"]
        for call in message.get("tool_calls") or ():
            call.pop("id")
        text, key = json.dumps(message), json.dumps(body)
        return seen, "" if self._answers.setdefault(key, text) == text else f"another answer to {key}: {text}"

    def whole(self, body: dict[str, Any], **more: Any) -> tuple[Seen, str]:
        """Read a stream to its end."""
        seen = self.server.ask(body=body, **more)
        return seen, "" if seen.words == "stream whole" else f"{seen.words} {seen.message}"

    def image(self, rng: random.Random) -> tuple[Seen, str]:
        """Ask about one of several images, or about a new one."""
        if rng.random() < 0.7:
            return self.same({**rng.choice(self._images), "temperature": 0})
        seen = self.server.ask(body=inline(picture(rng.choice(SIDES))))
        return seen, "" if seen.status == 200 else f"{seen.words} {seen.message}"

    def left(self) -> tuple[Seen, str]:
        """Leave a stream after some lines."""
        seen = self.server.ask(body=LONG, pace=leave)
        return seen, "" if seen.status == 200 else seen.words

    def bad(self, rng: random.Random) -> tuple[Seen, str]:
        """Send what has to be refused."""
        path, body, status = rng.choice(BAD)
        seen = self.server.ask(path, body)
        return seen, "" if seen.status == status else f"{seen.words} instead of {status} for {body!r:.200}"


@dataclass
class Tally:
    """What happened so far."""

    sent: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    done: list[tuple[float, float]] = field(default_factory=list)
    """The minute of each answer, and its seconds."""


def client(work: Work, tally: Tally, rng: random.Random, began: float, seconds: float) -> None:
    """Send requests until the time is over."""
    names, shares = list(work.kinds), [share for share, _ in work.kinds.values()]
    while time.monotonic() - began < seconds:
        (name,) = rng.choices(names, shares)
        try:
            seen, problem = work.kinds[name][1](rng)
        except Exception as error:
            seen, problem = Seen(0), repr(error)
        tally.sent[name] += 1
        tally.done.append(((time.monotonic() - began) / 60, seen.seconds))
        if problem:
            tally.errors.append(f"{name}: {problem}")
            print(f"after {time.monotonic() - began:.0f} s, {name}: {problem:.500}", flush=True)


def soak(server: Server, args: argparse.Namespace) -> dict[str, Any]:
    """Run the clients and return the figures; draw the plot where it is wanted."""
    seconds, tally, work = 60 * args.minutes, Tally(), Work(server)
    with Watch(server) as watch:
        began = time.monotonic()
        rngs = [random.Random(f"{args.seed} {number}") for number in range(args.clients)]
        threads = [threading.Thread(target=client, args=(work, tally, rng, began, seconds)) for rng in rngs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for path in filter(None, (args.plot, PICTURE if args.write else None)):
        draw(panels(tally, watch), path)
    return {
        "requests": sum(tally.sent.values()),
        "sent": dict(tally.sent),
        "errors": tally.errors[:20],
        "num_errors": len(tally.errors),
        "p99_s": round(percentile([took for _, took in tally.done], 0.99), 3),
        "growth": round(watch.growth(seconds / 3), 5),
        "memory_mib": round(watch.samples[-1][1] / 2**20, 1) if watch.samples else 0.0,
        "is_idle": eventually(lambda: is_idle(server)),
        "is_alive": server.process.poll() is None,
    }


def panels(tally: Tally, watch: Watch) -> list[Panel]:
    """Return what the plot shows: answers a second, their times, and memory."""
    step = max(1 / 12, max(minute for minute, _ in tally.done) / 60)
    slots: dict[int, list[float]] = {}
    for minute, took in tally.done:
        slots.setdefault(int(minute / step), []).append(took)
    rates = [(slot * step, len(times) / step / 60) for slot, times in sorted(slots.items())]
    medians = [(slot * step, percentile(times, 0.5)) for slot, times in sorted(slots.items())]
    return [
        Panel("Requests a second", {"ended": rates}),
        Panel("Seconds of a request", {"median": medians}),
        Panel("Memory of the server, MiB", {"anonymous and shared": watch.line()}),
    ]


def verdicts(found: dict[str, Any]) -> dict[str, bool]:
    """Return what must hold, and whether it does."""
    return {
        "every request ended as its kind must, with the same answer each time": found["num_errors"] == 0,
        "nothing is left in the engine": found["is_idle"],
        "memory grew by less than 1 %": found["growth"] < 0.01,
    }


def page(found: dict[str, Any], args: argparse.Namespace) -> str:
    """Return the section of the page."""
    held = "\n".join(f"- {words}: {'yes' if holds else '**no**'}" for words, holds in verdicts(found).items())
    return (
        f"{args.minutes:g} minutes, {args.clients} clients, {found['requests']:,} requests, {found['num_errors']} "
        f"errors. Memory of the server: {found['memory_mib']:.0f} MiB at the end, {100 * found['growth']:+.2f} % since "
        f"the warm-up.\n\n{table(found['sent'], [found['sent'].values()])}\n\n{held}\n\n"
        "![Requests, times and memory during the soak](soak.svg)"
    )


def main() -> int:
    """Run the soak; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, help="also draw the plot into this SVG file")
    parser.add_argument("--write", action="store_true", help="write docs/faults.md and docs/soak.svg")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ternvl-soak-") as name, Server(Path(name), *FLAGS) as server:
        found = soak(server.ready(), args)
        print(server.log()[-2000:] if "Traceback" in server.log() else "The log has no traceback.")
    if args.write:
        write_between(PAGE, "soak", page(found, args))
    held = verdicts(found)
    for words, holds in held.items():
        print(f"{'held' if holds else 'BROKEN'}: {words}")
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    print(json.dumps({"benchmark": "soak", "settings": settings, **found, "held": all(held.values())}))
    return int(not all(held.values()) or not found["is_alive"])


if __name__ == "__main__":
    sys.exit(main())
