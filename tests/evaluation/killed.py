"""Starts an evaluation again and again and kills it at any moment: `python -m tests.evaluation.killed DATA OUTPUT`.

It is a process of its own, because a fork of one with threads may stand still.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from ternvl.evaluation import Benchmark, Evaluation
from ternvl.evaluation.records import ANSWERS
from tests.evaluation.echo import EchoBackend


def start(data: Path, output: Path) -> int:
    """Run an evaluation, of which each answer takes some milliseconds, in a child; return its number."""
    child = os.fork()
    if child == 0:
        evaluation = Evaluation(data=data, output=output, benchmark=Benchmark(metric="exact"), concurrency=3)
        evaluation.run(EchoBackend(0.03), evaluation.items())
        os._exit(0)
    return child


def kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def main(data: Path, output: Path) -> None:
    rng, answers = random.Random(5), output / ANSWERS
    for _ in range(8):
        child = start(data, output)
        time.sleep(rng.uniform(0.0, 0.08))
        kill(child)
        if answers.exists() and answers.read_bytes().count(b"\n") > 10:
            return
    child = start(data, output)
    before = answers.stat().st_size if answers.exists() else 0
    while not answers.exists() or answers.stat().st_size <= before:
        time.sleep(0.0005)
    kill(child)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
