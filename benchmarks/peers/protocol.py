"""What a contestant's process and the runner say to each other: JSON, a line a message, on stdin and stdout.

A worker loads its model and says `{"ready": {...}}`, or `{"unavailable": "why"}` and ends. Each request is
`{"asks": [{"text", "image", "max_tokens"}, ...]}`, handed over at once; the response has `answers`, one an ask,
`seconds` for all of them, and the memory of the process. An answer has the times of its first and last token.
A failure is `{"error": "..."}`, after which the worker goes on. End of input ends it.

This file needs the standard library alone: every contestant's environment runs it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO


@dataclass(frozen=True)
class Ask:
    """A user's turn; the answer has exactly `max_tokens` tokens, drawn greedily."""

    text: str
    image: str | None
    """The path of a JPEG file."""
    max_tokens: int


@dataclass(frozen=True)
class Answer:
    """Seconds since the asks were handed over."""

    prompt_tokens: int
    output_tokens: int
    first_s: float
    last_s: float


class UnavailableError(Exception):
    """This contestant cannot take part here; the message says why."""


@dataclass(frozen=True)
class Contestant:
    """A loaded model."""

    answer: Callable[[list[Ask]], list[Answer]]
    version: str
    decode_bytes: int | None = None
    """Weights that are read for one token of one stream, where it is known."""
    pid: int | None = None
    """The process that holds the model, where it is another one."""
    close: Callable[[], None] = lambda: None


def serve(load: Callable[[], Contestant]) -> None:
    """Be a worker: load, then answer until the input ends."""
    with own_stdout() as out:
        try:
            contestant = load()
        except UnavailableError as reason:
            say(out, {"unavailable": str(reason)})
            return
        except Exception as error:
            say(out, {"unavailable": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})
            return
        pid = contestant.pid or os.getpid()
        ready = {"version": contestant.version, "decode_bytes": contestant.decode_bytes}
        say(out, {"ready": ready | memory(pid)})
        for request in requests():
            try:
                say(out, respond(contestant, pid, request))
            except Exception as error:
                say(out, {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})
        contestant.close()


def respond(contestant: Contestant, pid: int, asks: list[Ask]) -> dict[str, Any]:
    """Have the asks answered, timed and the memory watched."""
    reset_peak(pid)
    start = time.perf_counter()
    answers = contestant.answer(asks)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "answers": [asdict(answer) for answer in answers]} | memory(pid)


def requests() -> Iterator[list[Ask]]:
    """The asks of each line of the input."""
    for line in sys.stdin:
        yield [Ask(**ask) for ask in json.loads(line)["asks"]]


def own_stdout() -> TextIO:
    """The output for messages alone: whatever else the process prints goes to its error output."""
    kept = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return kept


def say(out: TextIO, message: dict[str, Any]) -> None:
    """One message."""
    out.write(json.dumps(message) + "\n")
    out.flush()


def memory(pid: int) -> dict[str, int | None]:
    """Resident memory of a process and its highest value since `reset_peak`, in bytes; None where the kernel does not
    tell."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {"resident_bytes": None, "peak_bytes": None}
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith(" kB")}
    return {"resident_bytes": sizes.get("VmRSS"), "peak_bytes": sizes.get("VmHWM")}


def reset_peak(pid: int) -> None:
    """Forget the highest value; where that is not allowed, the peak is that since the start."""
    try:
        Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return
