"""Compare ternvl with its peers on the same work: `python -m benchmarks.peers`, which `ternvl bench peers` calls.

    python -m benchmarks.peers.install --tokenizer DIR          # once: environments and models
    python -m benchmarks.peers --tokenizer DIR                  # measures; hours, because some peers are slow
    python -m benchmarks.peers --render benchmarks/results/peers-2026-11-22.json      # the chart and the tables again

Writes `benchmarks/results/peers-DATE.json`, a chart and `peers.md` beside it, and the README's table. Contestants take
turns, each in a process of its own; figures are medians. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.peers import machine, report
from benchmarks.peers.contestants import CONTESTANTS, ENVS, MODELS, ROOT, TITLES, Contestant, Places, chosen
from benchmarks.peers.measure import Row, Settings, Stage, run, stage
from benchmarks.peers.workloads import WORKLOADS, Workload
from ternvl.bench import measure as measure_limits
from ternvl.config import OFFICIAL_SYSTEM_MESSAGE
from ternvl.errors import TernvlError
from ternvl.prompt.messages import Message
from ternvl.prompt.template import render
from ternvl.prompt.tokenizer import Tokenizer

RESULTS = ROOT / "benchmarks" / "results"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        "ternvl bench peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--tokenizer", type=Path, help="folder with InternVL3's tokenizer.json")
    made.add_argument("--peers", nargs="+", default=[], metavar="NAME", help=f"{', '.join([*TITLES, *CONTESTANTS])}")
    made.add_argument("--workloads", nargs="+", default=list(WORKLOADS), metavar="NAME", help=", ".join(WORKLOADS))
    made.add_argument(
        "--neighbours", nargs="+", type=int, default=[], metavar="N", help="also beside N processes that compute: 1 2"
    )
    made.add_argument("--repeats", type=int, default=5)
    made.add_argument(
        "--repeats-of",
        nargs="+",
        default=[],
        metavar="WHAT=N",
        help="other numbers of repeats for a contestant, a peer, a workload or a pair: transformers=1, long=3, "
        "llamacpp:tiles=2",
    )
    made.add_argument(
        "--long-tokens", type=int, default=WORKLOADS["long"].num_text_tokens, help="number of tokens of the long prompt"
    )
    made.add_argument("--max-tokens", type=int, help="limit for the tokens of every answer, for a trial run")
    made.add_argument(
        "--envs", type=Path, default=ENVS, help="folder of the environments that benchmarks.peers.install made"
    )
    made.add_argument(
        "--models", type=Path, default=MODELS, help="folder of the models that benchmarks.peers.install made"
    )
    made.add_argument("--out", type=Path, help="the JSON file; by default benchmarks/results/peers-DATE.json")
    made.add_argument("--render", type=Path, metavar="JSON", help="draw this result instead of measuring")
    made.add_argument("--no-readme", action="store_true", help="do not write the README and peers.md")
    return made


def settings(args: argparse.Namespace) -> Settings:
    """Return the settings of the measurements. Raises ValueError if one is invalid."""
    if args.repeats < 1:
        raise ValueError(f"--repeats is {args.repeats}, but must be at least 1.")
    if args.max_tokens is not None and args.max_tokens < 2:
        raise ValueError(f"--max-tokens is {args.max_tokens}, but must be at least 2.")
    known = {*TITLES, *CONTESTANTS, *WORKLOADS}
    numbers = {}
    for text in args.repeats_of:
        name, _, number = text.partition("=")
        unknown = [part for part in name.split(":") if part not in known]
        if unknown or not number.isdigit():
            raise ValueError(
                f"--repeats-of {text!r} does not have the form transformers=1, long=3 or llamacpp:tiles=2."
            )
        numbers[name] = int(number)
    return Settings(args.repeats, numbers, args.max_tokens)


def workloads(args: argparse.Namespace) -> list[Workload]:
    """Return the chosen workloads. Raises ValueError for an unknown name or a bad length."""
    for name in args.workloads:
        if name not in WORKLOADS:
            raise ValueError(f"There is no workload {name!r}; there are {', '.join(WORKLOADS)}.")
    if args.long_tokens < 100:
        raise ValueError(f"--long-tokens is {args.long_tokens}, but must be at least 100.")
    if any(number < 1 for number in args.neighbours):
        raise ValueError(f"--neighbours is {min(args.neighbours)}, but must be at least 1.")
    long = replace(WORKLOADS["long"], title=f"{args.long_tokens:,}-token text", num_text_tokens=args.long_tokens)
    alone = [long if name == "long" else WORKLOADS[name] for name in args.workloads]
    return [each.beside(count) if count else each for each in alone for count in (0, *args.neighbours)]


def counter(folder: Path) -> Any:
    """Return a function that counts the tokens of a prompt with a text, including the template.

    Raises ValueError without a tokenizer.
    """
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"--tokenizer {folder} has no tokenizer.json.")
    tokenizer = Tokenizer.from_folder(folder)

    def count(text: str) -> int:
        pieces = render([Message("user", text)], system_message=OFFICIAL_SYSTEM_MESSAGE)
        return len(tokenizer.encode(pieces))

    return count


def result_of(
    args: argparse.Namespace, load: float, limits: dict[str, Any] | None, rows: dict[str, dict[str, Row]], loaded: Stage
) -> report.Result:
    """Return the result for the JSON file."""
    titles = {work.name: work.title for work in workloads(args)}
    return {
        "benchmark": "peers",
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "machine": machine.describe() | {"load_average_before": round(load, 2)},
        "limits": limits,
        "settings": asdict(settings(args)),
        "versions": loaded.versions,
        "decode_bytes": loaded.decode_bytes,
        "contestants": {name: each.title for name, each in CONTESTANTS.items()},
        "missing": loaded.missing,
        "workloads": {
            name: {"title": titles[name], "rows": {who: row.as_dict() for who, row in by_contestant.items()}}
            for name, by_contestant in rows.items()
        },
    }


def measure(args: argparse.Namespace, contestants: list[Contestant], work: list[Workload], path: Path) -> report.Result:
    """Run the measurements; write the JSON after each one, so that an interruption loses none."""
    load = machine.load_average()
    if load > 0.5:
        print(
            f"The load average is {load:.1f}: other work runs on this machine, so the figures will not be reliable.",
            flush=True,
        )
    try:
        limits = measure_limits().as_dict()
    except TernvlError as error:
        print(error, flush=True)
        limits = None
    places = Places(args.envs.absolute(), args.models.absolute())
    path.parent.mkdir(parents=True, exist_ok=True)
    result: report.Result = {}
    with stage(places, counter(args.tokenizer), path.with_suffix(".log")) as (loaded, prompts):

        def keep(rows: dict[str, dict[str, Row]]) -> None:
            result.update(result_of(args, load, limits, rows, loaded))
            path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

        run(loaded, prompts, contestants, work, settings(args), lambda text: print(text, flush=True), keep)
    return result


def render_all(result: report.Result, path: Path, *, readme: bool) -> None:
    """Draw the chart, write the tables of the README and of the results, and print the whole one."""
    from benchmarks.peers import chart

    chart.draw(result, path.with_suffix(".svg"))
    if readme:
        for file, body in ((ROOT / "README.md", report.summary(result)), (ROOT / report.PAGE, report.full(result))):
            file.write_text(report.rewrite(file.read_text(encoding="utf-8"), body), encoding="utf-8")
    print(report.section(result))
    print(report.beside(result))
    print(report.shares(result))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code, which is 2 for invalid settings."""
    args = parser().parse_args(arguments)
    try:
        if args.render:
            result, path = json.loads(args.render.read_text(encoding="utf-8")), args.render
        else:
            if args.tokenizer is None:
                raise ValueError("--tokenizer DIR is required: a folder with InternVL3's tokenizer.json.")
            contestants, work, _ = chosen(args.peers), workloads(args), settings(args)
            path = args.out or RESULTS / f"peers-{datetime.datetime.now(tz=datetime.UTC).date().isoformat()}.json"
            result = measure(args, contestants, work, path)
        render_all(result, path, readme=not args.no_readme and args.max_tokens is None)
    except (ValueError, OSError, TernvlError) as error:
        print(f"ternvl bench peers: {error}", file=sys.stderr)
        return 2
    print(os.path.relpath(path))
    return 0


if __name__ == "__main__":
    sys.exit(main())
