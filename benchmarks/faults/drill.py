"""What a drill is, and the list of all drills."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.live.ask import HELLO, Load, Seen, counted
from benchmarks.live.server import Server, StartError

NOTHING = "nothing"


class DrillError(Exception):
    """Raised if the server did not behave as it must; the message says what was seen instead."""


class SkippedError(Exception):
    """Raised if this machine does not allow a fault to be made; the message says why."""


@dataclass(frozen=True)
class Outcome:
    """What a drill showed: what clients saw, what the log said, and the seconds from the fault until all was well."""

    seen: str
    log: str = NOTHING
    seconds: float | None = None
    """None if the server is not meant to be there after the fault."""


Drill = Callable[[Path], Outcome]
DRILLS: dict[str, Drill] = {}
"""The drills by their faults, in the order of the table."""


def drill(fault: str) -> Callable[[Drill], Drill]:
    """Register a function as the drill of a fault. It gets an empty folder and raises DrillError."""

    def register(function: Drill) -> Drill:
        DRILLS[fault] = function
        return function

    return register


def expect(is_so: bool, otherwise: str) -> None:
    """Raise DrillError unless something is so."""
    if not is_so:
        raise DrillError(otherwise)


def expect_all(seen: Sequence[Seen], words: str) -> None:
    """Raise DrillError unless all answers are of one kind."""
    expect(all(each.words == words for each in seen), f"{counted(seen)}; expected: {words}")


def recovery(server: Server, since: float, seconds: float = 60.0) -> float:
    """Return the seconds from a time until a normal request is answered. Raises DrillError if that takes too long."""
    while True:
        if server.ask(body=HELLO, seconds=seconds).status == 200:
            return time.monotonic() - since
        expect(time.monotonic() - since < seconds, f"no normal answer {seconds:.0f} s after the fault")
        time.sleep(0.05)


def said(server: Server, pattern: str, seconds: float = 10.0) -> str:
    """Return the line of the log that has a match. Raises DrillError if there is none."""
    line = server.line(pattern, seconds)
    expect(bool(line), f"the log has no line with {pattern!r}: {server.log()[-500:]}")
    before, traceback, after = server.log().partition("Traceback")
    expect(not traceback, f"the log has a traceback: {before[-300:]}{traceback}{after[:2500]}")
    return line


def refused_start(server: Server, pattern: str) -> Outcome:
    """Return the outcome of a start that has to be refused; its last line must have `pattern`."""
    with server:
        try:
            server.ready()
        except StartError as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            expect(server.process.poll() == 1, f"the status is {server.process.poll()}, not 1: {error}")
            is_told = bool(lines) and lines[-1].startswith("ternvl: ") and pattern in lines[-1]
            expect(is_told and "Traceback" not in str(error), f"expected a last line with {pattern!r}: {error}")
            return Outcome("no connection; the process ends with status 1", lines[-1])
        raise DrillError("the server started")


def others_during(server: Server, bodies: Iterable[object], fault: Callable[[], None]) -> list[Seen]:
    """Make a fault while other clients have streams running, and return what those saw. Raises DrillError if cut."""
    with Load(_sender(server), list(bodies)) as load:
        fault()
    expect_all(load.seen, "stream whole")
    return load.seen


def _sender(server: Server) -> Callable[..., Seen]:
    return server.ask
