"""Speed of the embedded model beside processes that compute: decoding with `LLM`, and steps of `ternvl finetune`.

    python benchmarks/neighbours.py --seconds 5 --rounds 3

Each round measures with 0, 1 and 2 neighbours in turn; the medians of the rounds are printed. A neighbour is a loop in
Python on one thread. A quiet machine is needed: what else runs counts as a neighbour.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ternvl import LLM, SamplingParams

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
PARAMS = SamplingParams(temperature=0, max_tokens=150, ignore_eos=True)
ANSWER = "A red circle and a blue square. " * 3


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Run `count` processes that compute, within the context."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(0.2)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def decode(llm: LLM, seconds: float, *, streamed: bool) -> float:
    """Return the tokens per second of one answer after the other."""
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        if streamed:
            with llm.stream(QUESTION, PARAMS) as stream:
                count += sum(delta.num_tokens for delta in stream)
        else:
            count += len(llm.chat(QUESTION, PARAMS)[0].token_ids)
    return count / (time.perf_counter() - began)


def finetune(steps: int) -> float:
    """Return the training steps per second of one run, its first step left out."""
    with tempfile.TemporaryDirectory() as name:
        data, output = Path(name, "data.jsonl"), Path(name, "adapter")
        turns = [{"role": "user", "content": "What is in it?"}, {"role": "assistant", "content": ANSWER}]
        data.write_text(f"{json.dumps({'messages': turns})}\n" * 64, encoding="utf-8")
        command = ["--data", str(data), "--output", str(output), "--eval-share", "0", "--max-steps", str(steps)]
        subprocess.run([sys.executable, "-m", "ternvl", "finetune", *command], check=True, capture_output=True)
        rows = [json.loads(line) for line in (output / "run" / "metrics.jsonl").read_text().splitlines()]
    return (len(rows) - 1) / (rows[-1]["seconds"] - rows[0]["seconds"])


def main() -> None:
    """Print a line for each kind of work and number of neighbours."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    llm = LLM()
    rates = defaultdict[tuple[str, int], list[float]](list)
    for _ in range(args.rounds):
        for count in (0, 1, 2):
            with neighbours(count):
                rates["LLM.chat, tok/s", count].append(decode(llm, args.seconds, streamed=False))
                rates["LLM.stream, tok/s", count].append(decode(llm, args.seconds, streamed=True))
                if args.steps:
                    rates["finetune, steps/s", count].append(finetune(args.steps))
    medians = {key: statistics.median(values) for key, values in rates.items()}
    for (name, count), rate in sorted(medians.items()):
        print(f"{name}, {count} neighbours: {rate:.1f}, {rate / medians[name, 0]:.2f} of idle")


if __name__ == "__main__":
    main()
