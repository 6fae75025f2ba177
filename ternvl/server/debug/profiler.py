"""Where the time of the process goes: the stacks of all threads, sampled by a thread of its own.

A sample takes Python's lock for some microseconds and stops nothing else. Kernels run without the lock, so their time
is that of the function that calls them.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ternvl import __version__
from ternvl.server.debug.stacks import WAITING, Function, Stacks, thread_names
from ternvl.server.errors import HTTPError

_INTERVAL = 0.01
"""Seconds between two samples."""

_REST = 50
"""How many times longer than its processor time for a sample the sampler sleeps, if that is longer: 2 % at most."""

_NUMBER = re.compile(r"[_-]\d+$")
"""The number of a thread in its pool."""

_Stack = tuple[str, tuple[Function, ...]]
"""The name of a thread or of its pool, and the functions, the outermost first."""


@dataclass
class Profile:
    """The seconds in which each stack was seen."""

    seconds: defaultdict[_Stack, float] = field(default_factory=lambda: defaultdict(float))
    num_samples: int = 0

    def add(self, thread: str, innermost_first: list[Function], seconds: float) -> None:
        """Count a stack of a sample."""
        self.seconds[_NUMBER.sub("", thread), tuple(reversed(innermost_first))] += seconds

    def collapsed(self) -> str:
        """Return a line for each stack, `thread;outermost;...;innermost milliseconds`, as flame graphs take it."""
        lines = [(round(1000 * seconds), ";".join(_labels(stack))) for stack, seconds in self.seconds.items()]
        return "".join(f"{words} {number}\n" for number, words in sorted(lines, reverse=True) if number)

    def speedscope(self) -> dict[str, Any]:
        """Return the file format of speedscope, with one profile for each thread or pool."""
        frames: dict[str, dict[str, Any]] = {}
        profiles: dict[str, dict[str, Any]] = {}
        for stack in self.seconds:
            for function in stack[1]:
                file = function.module.replace(".", "/") + ".py"
                frames.setdefault(function.label, {"name": function.label, "file": file, "line": function.line})
        numbers = {label: number for number, label in enumerate([*frames, WAITING])}
        for stack, seconds in self.seconds.items():
            profile = profiles.setdefault(stack[0], _empty(stack[0]))
            profile["samples"].append([numbers[label] for label in _labels(stack)[1:]])
            profile["weights"].append(round(seconds, 6))
            profile["endValue"] = round(profile["endValue"] + seconds, 6)
        return {
            "$schema": "https://www.speedscope.app/file-format-schema.json",
            "exporter": f"ternvl {__version__}",
            "name": f"ternvl, {self.num_samples} samples",
            "shared": {"frames": [*frames.values(), {"name": WAITING}]},
            "profiles": list(profiles.values()),
        }


def _labels(stack: _Stack) -> list[str]:
    thread, functions = stack
    is_waiting = bool(functions) and functions[-1].waits
    name = Function(thread, "", 0).label.removesuffix(":")
    return [name, *(function.label for function in functions), *([WAITING] if is_waiting else [])]


def _empty(thread: str) -> dict[str, Any]:
    return {
        "type": "sampled", "name": thread, "unit": "seconds", "startValue": 0, "endValue": 0.0,
        "samples": [], "weights": [],
    }  # fmt: skip


def sample(seconds: float, stop: threading.Event) -> Profile:
    """Sample the other threads for some seconds, or until `stop` is set."""
    profile, stacks, pause = Profile(), Stacks(), _INTERVAL
    before = time.perf_counter()
    end = before + seconds
    while not stop.wait(min(pause, max(0.0, end - before))):
        names, began = thread_names(), time.thread_time()
        now = time.perf_counter()
        for ident, functions, _ in stacks.read():
            profile.add(names.get(ident, "unnamed"), functions, now - before)
        profile.num_samples += 1
        pause, before = max(_INTERVAL, _REST * (time.thread_time() - began)), now
        if now >= end:
            break
    return profile


class Profiler:
    """Takes one profile at a time."""

    def __init__(self) -> None:
        self._stop: threading.Event | None = None  # of the profile that is being taken
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="profiler")

    async def profile(self, seconds: float) -> Profile:
        """Return a profile of the next seconds. Raises HTTPError 409 while another one is being taken.

        It ends early if the task is cancelled.
        """
        if self._stop is not None:
            raise HTTPError(409, "Another profile is being taken; try again once it has ended.", code="profile_running")
        self._stop = stop = threading.Event()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, sample, seconds, stop)
        finally:
            stop.set()
            self._stop = None

    def close(self) -> None:
        """End the profile that is being taken."""
        if self._stop is not None:
            self._stop.set()
        self._thread.shutdown(wait=False)
