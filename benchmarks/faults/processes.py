"""Faults of the process itself: signals, its end, its start, and steps that do not end."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path

from benchmarks.faults import threads
from benchmarks.faults.drill import Outcome, drill, expect, expect_all, recovery, refused_start, said
from benchmarks.live.ask import HELLO, LONG, Load, counted
from benchmarks.live.server import Server, eventually

NUM_STREAMS = 8


@drill("kill -9 under load, then a start on the same port")
def killed(folder: Path) -> Outcome:
    """Kill a server with running streams; the next one must give the same answers."""
    with Server(folder) as server:
        before = server.ready().ask(body=HELLO).text
        with Load(server.ask, [LONG] * NUM_STREAMS) as load:
            server.end(signal.SIGKILL)
    began = time.monotonic()
    with Server(folder, port=server.port) as again:
        again.ready()
        expect(again.ask(body=HELLO).text == before, "the answer after the restart is another one")
        expect(all(each.is_cut for each in load.seen), counted(load.seen))
        seen = f"{counted(load.seen)}; the same answer as before from the next process"
        return Outcome(seen, seconds=recovery(again, began))


@drill("SIGTERM under load")
def stopped(folder: Path) -> Outcome:
    """Stop a server with running streams; all must be whole."""
    with Server(folder) as server:
        server.ready()
        with Load(server.ask, [LONG] * NUM_STREAMS) as load:
            server.send(signal.SIGTERM)
            expect(eventually(lambda: server.ask("/ready").status == 503), "it does not drain")
            refused, health = server.ask(body=HELLO), server.ask("/health")
        expect_all(load.seen, "stream whole")
        expect((refused.status, health.status) == (503, 200), f"{refused.words}, /health {health.words}")
        expect(server.process.wait(60) == 0, f"the exit status is {server.process.returncode}")
        return Outcome(
            f"{counted(load.seen)}; new requests 503, /health 200; exit status 0", said(server, "is stopping")
        )


@drill("SIGTERM with streams that outlast --drain-timeout")
def given_up(folder: Path) -> Outcome:
    """Stop a server that may not wait for its streams; they must end with an error in words."""
    with Server(folder, "--drain-timeout", "0.2") as server:
        server.ready()
        with Load(server.ask, [{**LONG, "max_tokens": 8000}] * NUM_STREAMS) as load:
            server.send(signal.SIGTERM)
        expect_all(load.seen, "stream ended by an error event")
        expect(server.process.wait(60) == 0, f"the exit status is {server.process.returncode}")
        return Outcome(f"{counted(load.seen)}; exit status 0", said(server, "are aborted"))


@drill("SIGHUP under load, with a key file")
def hung_up(folder: Path) -> Outcome:
    """Have the key file read again while streams run; a new key must work at once."""
    keys = folder / "keys.toml"
    keys.write_text("[[key]]\nname = 'team'\nkey = 'old'\n")
    with Server(folder, "--api-key-file", keys, key="old") as server:
        server.ready()
        with Load(server.ask, [LONG] * NUM_STREAMS) as load:
            keys.write_text("[[key]]\nname = 'team'\nkey = 'new'\n")
            began = time.monotonic()
            server.send(signal.SIGHUP)
            server.key = "new"
            seconds = recovery(server, began)
        expect_all(load.seen, "stream whole")
        return Outcome(f"{counted(load.seen)}; the new key is answered 200", said(server, "was read"), seconds)


@drill("a step that does not end (the engine's thread stopped by ptrace)")
def stuck(folder: Path) -> Outcome:
    """Stop the engine's thread alone for longer than --stuck-timeout."""
    with Server(folder, "--stuck-timeout", "2") as server:
        server.ready()
        with Load(server.ask, [{**LONG, "max_tokens": 3000}] * 2) as load:
            with threads.stopped(server):
                unready = eventually(lambda: server.ask("/ready", seconds=5).status == 503)
                stuck = eventually(lambda: server.ask("/health", seconds=5).status == 503)
                reason = server.ask("/ready").body.decode()
            began = time.monotonic()
            expect(eventually(lambda: server.ask("/ready").status == 200), "/ready stays 503")
            seconds = time.monotonic() - began
        expect(unready and stuck, f"/ready was 503: {unready}, /health was 503: {stuck}")
        expect_all(load.seen, "stream whole")
        words = f"/ready 503 ({reason}), then /health 503; {counted(load.seen)}"
        return Outcome(words, said(server, "/health answers 503"), seconds)


@drill("all of the process stopped for 3 s (SIGSTOP, SIGCONT)")
def frozen(folder: Path) -> Outcome:
    """Stop the whole process and let it continue."""
    with Server(folder) as server:
        server.ready()
        with Load(server.ask, [LONG] * 2) as load:
            server.send(signal.SIGSTOP)
            expect(server.ask("/health", seconds=1).status == 0, "/health was answered")
            time.sleep(2)
            server.send(signal.SIGCONT)
            seconds = recovery(server, time.monotonic())
        expect_all(load.seen, "stream whole")
        return Outcome(f"/health not answered meanwhile; {counted(load.seen)}", seconds=seconds)


@drill("the port is taken at the start")
def port_taken(folder: Path) -> Outcome:
    """Start on the port of another program."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        return refused_start(Server(folder, port=other.getsockname()[1]), "Cannot listen on 127.0.0.1 port")


@drill("the port of --metrics-port is taken at the start")
def metrics_port_taken(folder: Path) -> Outcome:
    """Start with another program's port for the metrics."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        return refused_start(Server(folder, "--metrics-port", port), "Cannot listen on 127.0.0.1 port")
