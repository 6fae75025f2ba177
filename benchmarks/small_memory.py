"""Converts and serves a model within a limit of memory, in a control group as containers have.

    python -m benchmarks.small_memory DIR
    python -m benchmarks.small_memory DIR --memory 2147483648 --cpus 1 --quantization int4

It needs Linux and root. The first start finds an empty cache, so it converts; the second one reads what the first has
kept. Each answers a text and an image of several tiles. Times, the peak of the group (with the pages of files that the
system keeps for it) and the number of processes that were killed for memory are printed; the last line is JSON. The
exit code is 1 if a process was killed or an answer is missing.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from benchmarks.faults.images import inline, picture
from benchmarks.live.ask import HELLO
from benchmarks.live.server import ROOT, Server


def limits(memory: int, cpus: float | None) -> Any:
    """Return `Limits` of scripts/cgroup_limits.py, which is not in a package."""
    spec = spec_from_file_location("cgroup_limits", ROOT / "scripts" / "cgroup_limits.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Limits(memory, cpus)


def one_start(name: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Start a server under the limits, ask it, and end it; return what was seen."""
    flags = (args.model, "--quantization", args.quantization, "--max-model-len", "4096", "--log-level", "error")
    with limits(args.memory, args.cpus) as limited:
        env = {"XDG_CACHE_HOME": str(folder / "cache")}
        with Server(folder, *flags, env=env, preexec_fn=limited.enter) as server:
            while server.process.poll() is None and server.ask("/ready", seconds=5).status != 200:
                time.sleep(0.1)
            ready = time.monotonic() - server.began
            text, image = server.ask(body=HELLO, seconds=600), server.ask(body=inline(picture(900)), seconds=600)
            if server.process.poll() is None:
                server.end()  # which waits for the workers, too, without which the group could not be removed
        killed, report = limited.killed(), limited.report()
    print(f"{name}: ready after {ready:.1f} s, text {text.words}, image {image.words}{report}", flush=True)
    return {
        "start": name,
        "ready_s": round(ready, 1),
        "text": text.status,
        "image": image.status,
        "killed": killed,
        "report": report.strip(", "),
    }


def main() -> int:
    """Run both starts; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a checkpoint")
    parser.add_argument("--memory", type=int, default=2**31, help="bytes")
    parser.add_argument("--cpus", type=float, help="processors, such as 1")
    parser.add_argument("--quantization", default="int8")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ternvl-small-") as name:
        found = [one_start(each, Path(name), args) for each in ("converts", "reads what was converted")]
    good = all(each["text"] == each["image"] == 200 and not each["killed"] for each in found)
    print(json.dumps({"benchmark": "small_memory", "settings": vars(args), "found": found, "held": good}))
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
