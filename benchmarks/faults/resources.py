"""Faults of the machine: few files, little memory, no more threads."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from benchmarks.faults.drill import Outcome, drill, expect, expect_all, others_during, refused_start, said
from benchmarks.faults.images import inline, picture
from benchmarks.faults.privileges import without_exemption
from benchmarks.live.ask import HELLO, LONG, Seen, counted
from benchmarks.live.server import Server


def limited(kind: int, most: int) -> partial[None]:
    """Return a function for `preexec_fn` that sets a limit."""
    return partial(resource.setrlimit, kind, (most, most))


@drill("100 open files at the start (ulimit -n)")
def few_files(folder: Path) -> Outcome:
    """Start with fewer open files than a server needs."""
    return refused_start(Server(folder, preexec_fn=limited(resource.RLIMIT_NOFILE, 100)), "open files")


@drill("1 GB of address space at the start (ulimit -v)")
def little_memory(folder: Path) -> Outcome:
    """Start with less memory than the model and its cache need."""
    limit = limited(resource.RLIMIT_AS, 10**9)
    return refused_start(Server(folder, preexec_fn=limit), "memory")


def virtual_bytes(server: Server) -> int:
    """Return the address space that a server takes."""
    rows = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(row.split()[1]) * 1024 for row in rows if row.startswith("VmSize:"))


def squeezed(server: Server, more: int) -> None:
    """Let a running server take no more than some bytes on top of what it has."""
    _, hard = resource.prlimit(server.process.pid, resource.RLIMIT_AS)
    resource.prlimit(server.process.pid, resource.RLIMIT_AS, (virtual_bytes(server) + more, hard))


def released(server: Server) -> None:
    """Take the limit away."""
    _, hard = resource.prlimit(server.process.pid, resource.RLIMIT_AS)
    resource.prlimit(server.process.pid, resource.RLIMIT_AS, (hard, hard))


@drill("no memory for large requests: 100 MiB more (RLIMIT_AS)")
def short_of_memory(folder: Path) -> Outcome:
    """Send bodies of 50 MB to a server that gets 100 MiB more; then give it memory again."""
    with Server(folder) as server:
        server.ready()
        expect(server.ask(body=inline(picture(64))).status == 200, "no normal answer before the fault")
        squeezed(server, 100 * 2**20)
        large = inline(bytes(19 * 2**20))
        large["messages"][0]["content"] *= 2
        found: list[Seen] = []
        seen = others_during(server, [LONG] * 2, lambda: found.extend(server.ask(body=large) for _ in range(2)))
        expect(server.process.poll() is None, f"the process ended: {server.log()[-300:]}")
        # Without an answer: the memory ended while the connection was read, before there was a request to answer.
        expect(all(each.status in (0, 400, 413, 429, 503) for each in found), counted(found))
        expect(all(each.status == 200 for each in seen), counted(seen))
        released(server)
        began = time.monotonic()
        expect(server.ask(body=inline(picture(65))).status == 200, "images are not answered after it")
        words = f"{counted(found)}; others: {counted(seen)}"
        return Outcome(words, said(server, "The system has no more memory"), time.monotonic() - began)


def allow_threads(server: Server, most: int) -> None:
    """Set how many threads and processes the user of a server may have, as this user."""
    code = "import resource, sys; pid, most = map(int, sys.argv[1:]); "
    code += "hard = resource.prlimit(pid, resource.RLIMIT_NPROC)[1]; "
    code += "resource.prlimit(pid, resource.RLIMIT_NPROC, (most if hard < 0 else min(most, hard), hard))"
    arguments = [sys.executable, "-c", code, str(server.process.pid), str(most)]
    subprocess.run(arguments, preexec_fn=without_exemption, check=True)


@drill("no thread and no process can be made any more (RLIMIT_NPROC)")
def no_threads(folder: Path) -> Outcome:
    """Let a running server make no more threads and image workers; then allow them again."""
    with Server(folder, preexec_fn=without_exemption) as server:
        server.ready()
        expect(server.ask(body=HELLO).status == 200, "no normal answer before the fault")
        found: list[Seen] = []

        def fault() -> None:
            for pid in server.workers():
                os.kill(pid, signal.SIGKILL)
            allow_threads(server, 1)
            found.extend(server.ask(body=inline(picture(100 + number))) for number in range(3))

        seen = others_during(server, [LONG] * 2, fault)
        health = server.ask("/health")
        expect(health.status == 200, f"/health: {health.words}")
        expect_all(found, "503")
        allow_threads(server, 10_000)
        began = time.monotonic()
        expect(server.ask(body=inline(picture(99))).status == 200, "images are not answered after it")
        words = f"images {counted(found)} ({found[0].message}); /health 200; others: {counted(seen)}"
        return Outcome(words, said(server, "The system has no more"), time.monotonic() - began)
