"""Fault drills: for each of many faults, what clients see, what the log says, and how long it takes until all is well.

    python -m benchmarks.faults
    python -m benchmarks.faults --only kill --only image
    python -m benchmarks.faults --write

Each drill starts real `ternvl serve` processes with the embedded model, on the loopback interface, makes one fault, and
checks what must hold. It ends only what it started. `--write` puts each line of the table into docs/faults.md and keeps
those of other drills. The last line is JSON. The exit code is 1 if a drill fails.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.faults import adapters, clients, files, images, processes, resources  # noqa: F401, they register drills
from benchmarks.faults.drill import DRILLS, Drill, DrillError, Outcome, SkippedError
from benchmarks.live.page import rows_between, table, write_between
from benchmarks.live.server import ROOT, StartError

PAGE = ROOT / "docs" / "faults.md"
HEAD = ("fault", "what clients saw", "what the log said", "well again after")


def run(fault: str, function: Drill) -> Outcome | str:
    """Run one drill and print what came of it. A text says why it failed or was skipped."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ternvl-drill-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        try:
            outcome: Outcome | str = shortened(function(folder), folder)
        except (SkippedError, subprocess.SubprocessError) as error:
            outcome = f"skipped: {error}"
        except (DrillError, StartError, OSError) as error:
            outcome = f"FAILED: {error}"
    words = outcome if isinstance(outcome, str) else f"{outcome.seen} | {outcome.log} | {seconds_of(outcome)}"
    print(f"{fault}: {words} ({time.monotonic() - began:.0f} s)", flush=True)
    return outcome


def shortened(outcome: Outcome, folder: Path) -> Outcome:
    """Return an outcome without the names of folders, which are others each time."""
    log = outcome.log.replace(f"{folder}/", "").replace(f"{ROOT}/", "").replace(str(folder), ".")
    return Outcome(outcome.seen, log, outcome.seconds)


def seconds_of(outcome: Outcome) -> str:
    """Return the time of recovery as the table shows it."""
    return "-" if outcome.seconds is None else f"{outcome.seconds:.1f} s"


def row(fault: str, outcome: Outcome | str) -> tuple[str, ...]:
    """Return a line of the table."""
    if isinstance(outcome, str):
        return (fault, outcome, "", "")
    log = outcome.log if outcome.log == "nothing" else f"`{outcome.log}`"
    return (fault, outcome.seen, log, seconds_of(outcome))


def write_row(fault: str, outcome: Outcome | str) -> None:
    """Put one line into the page's table; those of other drills stay."""
    rows: dict[str, Sequence[str]] = {**rows_between(PAGE, "drills"), fault: row(fault, outcome)}
    write_between(PAGE, "drills", table(HEAD, [rows[each] for each in DRILLS if each in rows]))


def main() -> int:
    """Run the drills; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], help="run the drills that have this text (repeatable)")
    parser.add_argument("--write", action="store_true", help="write the table into docs/faults.md")
    args = parser.parse_args()
    chosen = {
        fault: each for fault, each in DRILLS.items() if not args.only or any(word in fault for word in args.only)
    }
    found: dict[str, Outcome | str] = {}
    for fault, each in chosen.items():
        found[fault] = run(fault, each)
        if args.write:
            write_row(fault, found[fault])
    print(f"\n{table(HEAD, [row(fault, outcome) for fault, outcome in found.items()])}\n")
    failed = [fault for fault, outcome in found.items() if isinstance(outcome, str) and outcome.startswith("FAILED")]
    skipped = [fault for fault, outcome in found.items() if isinstance(outcome, str) and fault not in failed]
    held = len(found) - len(failed) - len(skipped)
    print(json.dumps({"benchmark": "faults", "drills": len(found), "held": held, "failed": failed, "skipped": skipped}))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
