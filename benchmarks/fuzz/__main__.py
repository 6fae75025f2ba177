"""Sends malformed and hostile requests to a server over raw sockets, and counts what comes back.

    python -m benchmarks.fuzz --requests 20000
    python -m benchmarks.fuzz --requests 1 --first 4711

The requests are made from valid ones of every endpoint: changed heads, bodies, JSON and chunked encodings, requests
that are cut or pipelined, and noise. The same seed makes the same requests. After each hundred, a normal request must
be answered within `--bound` seconds. The last line is JSON. The exit code is 0 if no answer had a status of 500 or
more, every connection came to its end, and the server is alive. 501 and 505 are allowed, by which HTTP wants unknown
transfer encodings and versions refused.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.fuzz.send import Report, run
from benchmarks.live.ask import HELLO
from benchmarks.live.page import table, write_between
from benchmarks.live.server import ROOT, Server

FLAGS = (
    "--head-timeout",
    "2",
    "--body-timeout",
    "3",
    "--max-model-len",
    "512",
    "--lora",
    "french",
    "--log-level",
    "error",
)
PAGE = ROOT / "docs" / "faults.md"


def checked(server: Server, bound: float) -> float:
    """Ask a normal request and return its seconds; more than `bound` if it was not answered."""
    seen = server.ask(body=HELLO, seconds=bound)
    return seen.seconds if seen.status == 200 else bound + 1


def attacked(server: Server, args: argparse.Namespace) -> Report:
    """Send all attacks, a thousand at a time, and print a line after each thousand."""
    total, end = Report(), args.first + args.requests
    for first in range(args.first, end, 1000):
        report = run(
            ("127.0.0.1", server.port), args.seed, range(first, min(end, first + 1000)),
            concurrency=args.concurrency, limit=args.limit, normal=lambda: checked(server, args.bound),
        )  # fmt: skip
        for fault in report.faults:
            print(fault)
        total = added(total, report)
        print(f"{total.sent}: {shown(total)}", flush=True)
    return total


def added(one: Report, other: Report) -> Report:
    """Return the sum of two reports."""
    return Report(
        one.sent + other.sent,
        one.kinds + other.kinds,
        one.statuses + other.statuses,
        one.unanswered + other.unanswered,
        one.faults + other.faults,
        max(one.longest_normal, other.longest_normal),
    )


def shown(report: Report) -> str:
    """Return a report in words."""
    statuses = ", ".join(f"{count} x {status}" for status, count in sorted(report.statuses.items()))
    return (
        f"{statuses}; {report.unanswered} connections closed without an answer; {len(report.faults)} faults; "
        f"slowest normal request {report.longest_normal:.2f} s"
    )


def main() -> int:
    """Run the attacks; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="the number of the first attack, to repeat some of a run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--concurrency", type=int, default=8, help="connections at a time")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds within which a connection must end")
    parser.add_argument("--bound", type=float, default=10.0, help="seconds within which a normal request is answered")
    parser.add_argument("--write", action="store_true", help="write the counts into docs/faults.md")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ternvl-fuzz-") as name, Server(Path(name), *FLAGS) as server:
        report = attacked(server.ready(), args)
        is_alive = server.process.poll() is None
        print(server.log()[-3000:] if not is_alive or "Traceback" in server.log() else "The log has no traceback.")
    if args.write:
        rows = [(status, count) for status, count in sorted(report.statuses.items())]
        text = f"{report.sent:,} attacks, seed {args.seed}: {shown(report)}.\n\n{table(('status', 'answers'), rows)}"
        write_between(PAGE, "fuzz", text)
    is_good = is_alive and not report.faults and report.longest_normal <= args.bound
    found = {"sent": report.sent, "kinds": report.kinds, "statuses": report.statuses, "unanswered": report.unanswered}
    found |= {"faults": report.faults, "longest_normal_s": round(report.longest_normal, 3), "held": is_good}
    print(json.dumps({"benchmark": "fuzz", "settings": vars(args), **found}))
    return int(not is_good)


if __name__ == "__main__":
    sys.exit(main())
