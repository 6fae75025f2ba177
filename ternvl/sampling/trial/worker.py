"""Tries grammars in a process of its own, so that one that takes long or much memory can be ended.

`trials.py` runs this module with the fields of `TrialLimits` as JSON. First it reads a line of JSON, the tokens of the
vocabulary in Latin-1. A job is a line with the number of bytes of a grammar, and these bytes. The answer is a line
`{"reason": why it cannot be served, or "", "is_slow": whether its first mask takes too long}`.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from llguidance import LLTokenizer

from ternvl.sampling.trial.compiling import Vocabulary, matcher_of, reason_of
from ternvl.workers.confine import confine


@dataclass(frozen=True, slots=True)
class TrialLimits:
    """What a grammar may take, and the tokens that are no text."""

    max_seconds: float
    """Seconds of processor time for compiling and the first mask, after which the process ends by SIGPROF."""
    max_mask_seconds: float
    """Seconds of processor time for the first mask, which the engine computes anew for each answer."""
    max_memory: int
    """Bytes of address space."""
    hidden_ids: tuple[int, ...]
    stop_ids: tuple[int, ...]


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """End the process if the context takes more processor time, where the system can."""
    if not hasattr(signal, "setitimer"):
        yield
        return
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def tried(tokenizer: LLTokenizer, text: str, limits: TrialLimits) -> tuple[str, bool]:
    """Compile a grammar and compute its first mask.

    Return why it cannot be served, or an empty string, and whether the mask takes longer than it may.
    """
    matcher = matcher_of(tokenizer, text)
    if reason := reason_of(matcher):
        return reason, False
    began = time.process_time()
    matcher.compute_bitmask()
    return reason_of(matcher), time.process_time() - began > limits.max_mask_seconds


def serve(jobs: BinaryIO, out: BinaryIO, limits: TrialLimits) -> None:
    """Answer jobs until there are no more."""
    tokens = [token.encode("latin-1") for token in json.loads(jobs.readline())]
    as_bytes = Vocabulary(tokens, lambda text: [], hidden_ids=set(limits.hidden_ids), eos_id=limits.stop_ids[0])
    tokenizer = as_bytes.tokenizer(limits.stop_ids)
    confine(limits.max_memory)
    out.write(b"\n")
    out.flush()
    while line := jobs.readline():
        text = jobs.read(int(line)).decode()
        with _limited(limits.max_seconds):
            reason, is_slow = tried(tokenizer, text, limits)
        out.write(json.dumps({"reason": reason, "is_slow": is_slow}).encode() + b"\n")
        out.flush()


def main() -> None:
    """Serve the jobs on the standard input."""
    fields = json.loads(sys.argv[1])
    lists = {name: tuple(fields[name]) for name in ("hidden_ids", "stop_ids")}
    serve(sys.stdin.buffer, sys.stdout.buffer, TrialLimits(**fields | lists))


if __name__ == "__main__":
    main()
