"""`ternvl serve` that also writes down what its engine does and when.

    python -m benchmarks.scale.validation.recorder FILE serve --port 8000

Each line of FILE is a JSON array; times are seconds of the monotonic clock:

- `["add", time, has_images]`: a request came to the engine's queue;
- `["first", time]`: an answer's first token was drawn;
- `["step", began, ended, prompt_tokens, tiles, answer_tokens, num_left, waited, waited_then]`: a step, the requests
  that the engine has after it, and for how long its thread had waited for a processor in all, before it and after it.

Calibration uses it; validation measures plain `ternvl serve`.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

from ternvl.cli import main
from ternvl.engine.loop import Loop
from ternvl.engine.request import RequestGroup
from ternvl.types import TokenOutput


def install(file: IO[str]) -> None:
    """Let all engines of this process write to a file."""
    add, step, deliver = Loop.add, Loop._step, Loop._deliver

    lock = threading.Lock()  # requests are added by another thread than the one that runs steps

    def write(*values: Any) -> None:
        line = json.dumps(values) + "\n"
        with lock:
            file.write(line)

    def timed_add(loop: Loop, group: RequestGroup) -> None:
        write("add", time.monotonic(), group.has_images)
        add(loop, group)

    def timed_deliver(loop: Loop, output: TokenOutput) -> None:
        if output.first_token is not None:
            write("first", time.monotonic())
        deliver(loop, output)

    def timed_step(loop: Loop) -> None:
        before, waited, began = loop.engine.stats(), _waited(), time.monotonic()
        step(loop)
        ended, waited_then, after = time.monotonic(), _waited(), loop.engine.stats()
        write(
            "step",
            began,
            ended,
            after.num_prefill_tokens - before.num_prefill_tokens,
            after.num_encoded_tiles - before.num_encoded_tiles,
            after.num_generated_tokens - before.num_generated_tokens,
            after.num_running + after.num_waiting,
            waited,
            waited_then,
        )

    for name, method in (("add", timed_add), ("_deliver", timed_deliver), ("_step", timed_step)):
        setattr(Loop, name, method)


def _waited() -> float:
    """Return for how many seconds the calling thread could have run and waited for a processor."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):  # not Linux
        return 0.0


if __name__ == "__main__":
    path = Path(sys.argv[1])
    sys.argv = ["ternvl", *sys.argv[2:]]
    with path.open("w", encoding="utf-8", buffering=1) as file:
        install(file)
        main()
