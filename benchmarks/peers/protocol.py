"""The protocol between the runner and a contestant's process: JSON, one message per line, on stdin and stdout.

A worker loads its model and sends `{"ready": {...}}`, or sends `{"unavailable": "reason"}` and ends. A request is
`{"asks": [{"text", "image", "max_tokens"}, ...]}`, whose asks start together. The response has `answers`, one per ask,
`seconds` for all of them, and the memory of the process. An answer has the times of its first and its last token. An
error is `{"error": "..."}`, after which the worker continues. The worker ends at the end of its input.

This file uses only the standard library, because it runs in the environment of every contestant.
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
    """A user's turn. The answer has exactly `max_tokens` tokens, drawn greedily."""

    text: str
    image: str | None
    """The path of a JPEG file, or None."""
    max_tokens: int


@dataclass(frozen=True)
class Answer:
    """The times of an answer, in seconds since the asks were sent."""

    prompt_tokens: int
    output_tokens: int
    first_s: float
    last_s: float


class UnavailableError(Exception):
    """The contestant cannot take part; the message gives the reason."""


@dataclass(frozen=True)
class Contestant:
    """A loaded model."""

    answer: Callable[[list[Ask]], list[Answer]]
    version: str
    decode_bytes: int | None = None
    """Bytes of weights that are read for one token of one stream, if known."""
    pid: int | None = None
    """The process that has the model in memory, if it is another one."""
    close: Callable[[], None] = lambda: None


def serve(load: Callable[[], Contestant]) -> None:
    """Run a worker: load the model, then answer requests until the input ends."""
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
    """Return the response to asks, with times and memory."""
    reset_peak(pid)
    start = time.perf_counter()
    answers = contestant.answer(asks)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "answers": [asdict(answer) for answer in answers]} | memory(pid)


def requests() -> Iterator[list[Ask]]:
    """Yield the asks of each line of the input."""
    for line in sys.stdin:
        yield [Ask(**ask) for ask in json.loads(line)["asks"]]


def own_stdout() -> TextIO:
    """Return stdout for messages only, and redirect all other output of the process to stderr."""
    kept = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return kept


def say(out: TextIO, message: dict[str, Any]) -> None:
    """Write one message."""
    out.write(json.dumps(message) + "\n")
    out.flush()


def memory(pid: int) -> dict[str, int | None]:
    """Return the resident memory of a process and its peak since `reset_peak`, in bytes; None if the kernel does not
    report it."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {"resident_bytes": None, "peak_bytes": None}
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith(" kB")}
    return {"resident_bytes": sizes.get("VmRSS"), "peak_bytes": sizes.get("VmHWM")}


def reset_peak(pid: int) -> None:
    """Reset the peak. If this is not allowed, the peak is that since the start of the process."""
    try:
        Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return
