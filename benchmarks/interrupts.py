"""Interrupts the start of `ternvl serve` and `ternvl run` at random moments: every process must end.

    python benchmarks/interrupts.py --starts 100

The first start of each command is interrupted when it is ready, and gives the range of the moments. The last line says
how many processes ended and how long the slowest one took. The exit status is 1 if one did not end within ten seconds.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

COMMANDS = (("serve", "--port", "0"), ("run", "Hello", "--max-tokens", "2000"))
LIMIT = 10.0
"""The most seconds from the signal to the end."""


def begin(command: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start `ternvl` with these arguments."""
    arguments = [sys.executable, "-m", "ternvl", *command]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0)


def interrupt(process: subprocess.Popen[bytes]) -> float | None:
    """Send SIGINT; return the seconds until the process has ended, or None if it had to be killed."""
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    try:
        process.wait(LIMIT)
        return time.monotonic() - began
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None
    finally:
        assert process.stdout is not None
        process.stdout.close()


def time_of_start(command: Sequence[str]) -> float:
    """Return the seconds until a command prints its first byte."""
    began = time.monotonic()
    process = begin(command)
    assert process.stdout is not None
    process.stdout.read(1)
    seconds = time.monotonic() - began
    interrupt(process)
    return seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Interrupt the starts, print what happened, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--starts", type=int, default=100, help="the number of starts that are interrupted")
    parser.add_argument("--seed", type=int, default=os.getpid(), help="the seed of the moments")
    options = parser.parse_args(arguments)
    draw = random.Random(options.seed)
    starts = {command: time_of_start(command) for command in COMMANDS}
    took: list[float] = []
    for number in range(options.starts):
        command = COMMANDS[number % len(COMMANDS)]
        process, moment = begin(command), draw.uniform(0, 1.1 * starts[command])
        time.sleep(moment)
        seconds = interrupt(process)
        if seconds is None:
            print(f"ternvl {command[0]} did not end after a signal at {moment:.3f} s (seed {options.seed})")
        else:
            took.append(seconds)
    took.sort()
    shown = f"; median {took[len(took) // 2]:.2f} s, slowest {took[-1]:.2f} s" if took else ""
    print(f"{len(took)} of {options.starts} ended{shown}; a whole start took {max(starts.values()):.1f} s")
    return int(len(took) < options.starts)


if __name__ == "__main__":
    raise SystemExit(main())
