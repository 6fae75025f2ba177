"""Runs the workloads: contestants alternate within each repeat, and only one works at a time."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.neighbours import neighbours
from benchmarks.peers import machine
from benchmarks.peers.contestants import ROOT, Contestant, Places
from benchmarks.peers.process import Process, Unavailable
from benchmarks.peers.workloads import WORKLOADS, Prompts, Workload, problem

Say = Callable[[str], None]
ROOM_BYTES = 6 * 1024**3
WARM_UP = (WORKLOADS["text"], WORKLOADS["tile"])


@dataclass
class Row:
    """The measurements of one contestant in one workload."""

    values: dict[str, list[float]] = field(default_factory=dict)
    """Values by metric, in the order of the repeats."""
    prompt_tokens: int | None = None
    missing: str | None = None
    """The reason if there are no values."""

    def as_dict(self) -> dict[str, Any]:
        """Return the row for the JSON file."""
        medians = {name: statistics.median(values) for name, values in self.values.items()}
        repeats = max(map(len, self.values.values()), default=0)
        return {
            "median": medians,
            "values": self.values,
            "repeats": repeats,
            "prompt_tokens": self.prompt_tokens,
            "missing": self.missing,
        }


@dataclass(frozen=True)
class Settings:
    """Numbers of repeats, and limits."""

    repeats: int = 5
    repeats_of: dict[str, int] = field(default_factory=dict)
    """Other numbers by contestant, peer, workload or CONTESTANT:WORKLOAD; the most specific key counts."""
    max_tokens: int | None = None
    """Limit for the tokens of every answer, for a trial run."""

    def of(self, contestant: Contestant, workload: Workload) -> int:
        """Return the number of repeats of this contestant in this workload."""
        keys = [f"{who}:{workload.name}" for who in (contestant.name, contestant.peer)]
        for key in [*keys, contestant.name, contestant.peer, workload.name]:
            if key in self.repeats_of:
                return self.repeats_of[key]
        return self.repeats

    def tokens(self, workload: Workload) -> int:
        """Return the number of tokens of an answer."""
        return workload.max_tokens if self.max_tokens is None else min(self.max_tokens, workload.max_tokens)


class Stage:
    """The loaded processes, which are started when they are first needed."""

    def __init__(self, places: Places, prompts: Prompts, log: Path) -> None:
        self._places, self._prompts, self._log = places, prompts, log
        self._processes: dict[tuple[str, str], Process] = {}
        self.missing: dict[str, str] = {}
        self.versions: dict[str, str] = {}
        self.decode_bytes: dict[str, int | None] = {}

    def start(self, contestant: Contestant, mode: str) -> Process:
        """Start a new process. Raises Unavailable."""
        if contestant.name in self.missing:
            raise Unavailable(self.missing[contestant.name])
        lacking = [path for path in contestant.files(self._places) if not path.exists()]
        try:
            if lacking:
                raise Unavailable(f"not installed: {lacking[0].name} is missing")
            process = Process(contestant.command(self._places, mode), root=ROOT, log=self._log)
        except Unavailable as reason:
            self.missing[contestant.name] = str(reason)
            raise
        self.versions[contestant.peer] = process.version
        self.decode_bytes[contestant.name] = process.decode_bytes
        return process

    def process(self, contestant: Contestant, workload: Workload) -> Process:
        """Return the contestant's process, warmed up. Raises Unavailable."""
        mode = workload.mode if contestant.two_modes else "one"
        key = contestant.name, mode
        self.make_room(but=key)
        if key in self._processes and not self._processes[key].is_alive:
            self._processes.pop(key).close()
        if key not in self._processes:
            process = self._processes[key] = self.start(contestant, mode)
            for number, work in enumerate(WARM_UP):
                process.ask(self._prompts.asks(work, -1 - number, max_tokens=2))
        self._processes[key] = self._processes.pop(key)  # keeps the order of last use
        return self._processes[key]

    def make_room(self, but: tuple[str, str] | None = None) -> None:
        """End idle processes, the least recently used first, until enough memory is free for the next one."""
        for key in [key for key in self._processes if key != but]:
            if machine.available_bytes() >= ROOM_BYTES:
                return
            self._processes.pop(key).close()

    def keep(self, contestants: Sequence[Contestant], workloads: Sequence[Workload]) -> None:
        """End the processes that these workloads do not need."""
        needed = {
            (contestant.name, workload.mode if contestant.two_modes else "one")
            for contestant in contestants
            for workload in workloads
            if not workload.restarts
        }
        for key in [key for key in self._processes if key not in needed]:
            self._processes.pop(key).close()

    def close(self) -> None:
        """End all processes."""
        self.keep([], [])


@contextmanager
def stage(places: Places, count: Callable[[str], int], log: Path) -> Iterator[tuple[Stage, Prompts]]:
    """Yield the processes and the prompts; end the processes and delete the pictures afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        prompts = Prompts(Path(folder), count)
        loaded = Stage(places, prompts, log)
        try:
            yield loaded, prompts
        finally:
            loaded.close()


def run(
    loaded: Stage,
    prompts: Prompts,
    contestants: Sequence[Contestant],
    workloads: Sequence[Workload],
    settings: Settings,
    say: Say,
    done: Callable[[dict[str, dict[str, Row]]], None] = lambda rows: None,
) -> dict[str, dict[str, Row]]:
    """Rows by workload and contestant; `done` is called with what there is after each measurement."""
    rows: dict[str, dict[str, Row]] = {}
    for index, workload in enumerate(workloads):
        loaded.keep(contestants, workloads[index:])
        say(f"{workload.title}")
        rows[workload.name] = {contestant.name: Row() for contestant in contestants}
        for turn in range(max(settings.of(contestant, workload) for contestant in contestants)):
            due = [each for each in contestants if turn < settings.of(each, workload)]
            asks = prompts.asks(workload, turn, max_tokens=settings.tokens(workload))
            shift = turn % max(len(due), 1)  # the first contestant changes from turn to turn
            for contestant in due[shift:] + due[:shift]:
                row = rows[workload.name][contestant.name]
                if row.missing is None:
                    with neighbours(workload.neighbours):
                        take_turn(loaded, row, contestant, workload, asks)
                    say(f"  {contestant.title:<20}{shown(row)}")
                    done(rows)
    return rows


def take_turn(loaded: Stage, row: Row, contestant: Contestant, workload: Workload, asks: list[dict[str, Any]]) -> None:
    """Add one measurement to the row, or the reason why there is none."""
    try:
        response = started(loaded, contestant, workload, asks) if workload.restarts else None
        response = response or loaded.process(contestant, workload).ask(asks)
    except Unavailable as reason:
        row.missing = str(reason)
        return
    row.missing = problem(workload, response, asks)
    if row.missing is None:
        row.prompt_tokens = response["answers"][0]["prompt_tokens"]
        for metric in workload.metrics:
            if (value := metric.of(response)) is not None:
                row.values.setdefault(metric.name, []).append(value)


def started(loaded: Stage, contestant: Contestant, workload: Workload, asks: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the response to the first asks of a new process, with the seconds since its start."""
    loaded.make_room()
    process = loaded.start(contestant, workload.mode)
    try:
        response = process.ask(asks)
        return response | {"ready_s": process.ready_s, "answered_s": process.since_start()}
    finally:
        process.close()


def shown(row: Row) -> str:
    """Describe the latest values."""
    if row.missing is not None:
        return row.missing
    return ", ".join(f"{name} {values[-1]:.4g}" for name, values in row.values.items())
