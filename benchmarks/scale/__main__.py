"""Simulates a fleet of servers, checks the simulation against real ones, and answers questions about fleets.

    python -m benchmarks.scale validate
    python -m benchmarks.scale tables

`--write` writes the answers into docs/scale.md, and figures into benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from typing import Any

from benchmarks.live.page import write_between
from benchmarks.live.server import ROOT, StartError
from benchmarks.scale import tables
from benchmarks.scale.models import embedded, full_size
from benchmarks.scale.rates import RESULTS, read, write
from benchmarks.scale.validation import compare, report

PAGE = ROOT / "docs" / "scale.md"
MEASURED, ANSWERS = RESULTS / "scale.json", RESULTS / "scale-tables.json"
PICTURE = ROOT / "docs" / "scale.svg"


def _validate(args: argparse.Namespace) -> int:
    try:
        found = {"processor": report.processor(), **compare.measure(args)}
    except (RuntimeError, StartError) as error:
        print(f"Nothing was measured: {error}", file=sys.stderr)
        return 1
    print(report.validation(found))
    if args.write:
        write(MEASURED, found)
        write_between(PAGE, "validation", report.validation(found))
    missed = report.missed(compare.rows(found))
    print(json.dumps({"benchmark": "scale", "missed": missed, "rows": compare.rows(found)}))
    return int(bool(missed))


def _tables(args: argparse.Namespace) -> int:
    try:
        measured = read(MEASURED)
    except OSError:
        print(f"{MEASURED} is missing: run `python -m benchmarks.scale validate --write` first.", file=sys.stderr)
        return 1
    models = (embedded(measured), full_size())
    found = read(ANSWERS) if args.render or args.only else {}
    if not args.render:
        asked = tables.ask(models, lambda name: print(name, flush=True), args.only)
        found |= {"date": datetime.now(UTC).date().isoformat(), **asked}
    if args.write:
        write(ANSWERS, found)
    made = tables.sections(found, models, args.core_hour)
    for name, text in made.items():
        print(f"\n{name}\n\n{text}")
        if args.write:
            write_between(PAGE, name, text)
    if args.write:
        tables.plot(found, PICTURE)
    return 0


def main(arguments: Any = None) -> int:
    """Run a command; return the exit code: 1 if a prediction misses its bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("validate", help="measure two servers, and predict the same")
    one.add_argument("--threads", type=int, default=1, help="threads of each server")
    one.add_argument("--rounds", type=int, default=3, help="how often each measurement is made")
    one.add_argument("--seconds", type=float, default=14.0, help="seconds of each measurement")
    one.add_argument("--loads", type=float, nargs="+", default=[0.4, 0.7], help="loads in times of the capacity")
    one.add_argument("--seed", default="validation", help="seed of the requests")
    one.add_argument("--write", action="store_true", help="write docs/scale.md and benchmarks/results/scale.json")
    one.set_defaults(run=_validate)
    two = commands.add_parser("tables", help="answer the questions of docs/scale.md")
    two.add_argument("--core-hour", type=float, default=0.04, help="the price of a core for an hour")
    two.add_argument("--only", nargs="*", default=[], help="the sections to simulate again, such as `sizes 0`")
    two.add_argument("--render", action="store_true", help="simulate nothing: take the figures of the last --write")
    two.add_argument("--write", action="store_true", help="write docs/scale.md, its plot and its figures")
    two.set_defaults(run=_tables)
    args = parser.parse_args(arguments)
    return int(args.run(args))


if __name__ == "__main__":
    sys.exit(main())
