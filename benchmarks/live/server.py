"""A `ternvl serve` process of its own on the loopback interface: its start, its log, its memory and its end."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from benchmarks.live.ask import Seen, ask

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 120.0
"""The most seconds that a start may take."""


class StartError(Exception):
    """Raised if a server ends before it is ready; the message is what it wrote."""


def free_port() -> int:
    """Return a port of the loopback interface that nobody has at the moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Server:
    """One server that serves the embedded model unless the flags say otherwise. Leaving the context kills it."""

    def __init__(
        self,
        folder: Path,
        *flags: str | Path,
        port: int | None = None,
        env: Mapping[str, str] | None = None,
        output: IO[bytes] | int | None = None,
        tls: bool = False,
        key: str | None = None,
        tree: Path = ROOT,
        command: Sequence[str] = (sys.executable, "-m", "ternvl"),
        **popen: Any,
    ) -> None:
        """Start it. `output` takes the place of its log; `key` is sent with every request; `popen` goes to Popen.

        `tree` is the root of the sources that it runs; `command` takes the place of `ternvl`.
        """
        self.port = port or free_port()
        self.log_path = folder / f"server-{self.port}.log"
        self.key, self.tls = key, tls
        whole = [*command, "serve", "--port", str(self.port), *map(str, flags)]
        with self.log_path.open("ab") as log:
            target = log if output is None else output
            self.process = subprocess.Popen(
                whole, stdout=target, stderr=target, cwd=tree, env={**os.environ, **(env or {})}, **popen
            )
        self.began = time.monotonic()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def ready(self) -> Server:
        """Wait until it takes requests. Raises StartError if it ends before that."""
        deadline = self.began + START_SECONDS
        while self.ask("/ready", seconds=5).status != 200:
            if self.process.poll() is not None:
                raise StartError(self.log())
            if time.monotonic() > deadline:
                raise StartError(f"not ready after {START_SECONDS:.0f} s: {self.log()}")
            time.sleep(0.05)
        return self

    def ask(self, path: str = "/v1/chat/completions", body: Any = None, *, seconds: float = 120.0, **more: Any) -> Seen:
        """Send one request, as `benchmarks.live.ask.ask` does."""
        return ask(("127.0.0.1", self.port), path, body, seconds=seconds, tls=self.tls, key=self.key, **more)

    def connect(self) -> socket.socket:
        """Return a raw connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def log(self) -> str:
        """Return all that it has written so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def line(self, pattern: str, seconds: float = 10.0) -> str:
        """Wait for a line of the log that has a match of `pattern`, and return it; an empty text if none comes."""
        deadline = time.monotonic() + seconds
        while True:
            if found := re.search(rf"^.*(?:{pattern}).*$", self.log(), re.MULTILINE):
                return found[0].strip()
            if time.monotonic() > deadline:
                return ""
            time.sleep(0.05)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGTERM, seconds: float = 60.0) -> int:
        """Send a signal and return the exit status. Raises subprocess.TimeoutExpired."""
        self.send(number)
        return self.process.wait(seconds)

    def workers(self) -> list[int]:
        """Return the process ids of its children."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    stat = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
                    if int(stat[1]) == self.process.pid and stat[0] != "Z":
                        found.append(int(entry.name))
        return found

    def memory(self) -> int:
        """Return the bytes that it and its children occupy; pages that several of them share count in parts.

        Pages of files (programs, libraries, weights) do not count: how much of them counts for one process changes
        whenever another program uses the same files.
        """
        return sum(map(_own_bytes, (self.process.pid, *self.workers())))

    def metric(self, name: str) -> float:
        """Return the sum of a metric over its labels."""
        text = self.ask("/metrics").body.decode()
        return sum(map(float, re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)))


def _own_bytes(pid: int) -> int:
    try:
        rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return sum(int(row.split()[1]) * 1024 for row in rows if row.startswith(("Pss_Anon:", "Pss_Shmem:")))


def eventually(is_so: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Wait until something is so; return whether it became so in time."""
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
