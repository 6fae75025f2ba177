"""Faults of clients: those that leave, do not read, send slowly, or send what is hostile."""

from __future__ import annotations

import json
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.faults.drill import Outcome, drill, expect, expect_all, others_during, recovery, said
from benchmarks.live.ask import HELLO, LONG, Load, Seen, counted
from benchmarks.live.server import Server, eventually

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: drill\r\nContent-Type: application/json\r\n"
FEW = 3


def leave(number: int) -> None:
    """Leave a stream after its fourth line."""
    if number >= 4:
        raise ConnectionError


def is_idle(server: Server) -> bool:
    """Return whether the engine has no work."""
    return not server.metric("ternvl_engine_running") and not server.metric("ternvl_engine_waiting")


def status_of(received: bytes) -> str:
    """Return the status of a raw answer."""
    return received.split(b" ", 2)[1].decode() if received.startswith(b"HTTP/1.1 ") else "no answer"


def sent_raw(server: Server, sent: bytes, pause: float = 0.0) -> bytes:
    """Send bytes, at once or one by one with pauses, and return all that comes until the connection is closed."""
    with server.connect() as sock:
        try:
            for piece in (sent,) if not pause else (sent[at : at + 1] for at in range(len(sent))):
                sock.sendall(piece)
                time.sleep(pause)
        except OSError:  # the server has answered and closed it
            pass
        received = b""
        try:
            while data := sock.recv(65_536):
                received += data
        except OSError:
            pass
        return received


@drill("50 clients leave in mid-stream")
def leaving(folder: Path) -> Outcome:
    """Let clients leave while others stay; nothing may be left of them."""
    with Server(folder) as server:
        server.ready()

        def fault() -> None:
            gone = [threading.Thread(target=server.ask, kwargs={"body": LONG, "pace": leave}) for _ in range(50)]
            for thread in gone:
                thread.start()
            for thread in gone:
                thread.join()

        seen = others_during(server, [LONG] * FEW, fault)
        began = time.monotonic()
        expect(eventually(lambda: is_idle(server)), "the engine still has work of clients that have left")
        line = said(server, ", abort")
        return Outcome(f"others: {counted(seen)}", line, recovery(server, began))


@drill("a client that never reads its stream (--write-timeout 2)")
def never_reading(folder: Path) -> Outcome:
    """Ask for a long stream and read nothing of it."""
    body = json.dumps({**LONG, "max_tokens": 8000, "n": 8, "logprobs": True, "top_logprobs": 20}).encode()
    with Server(folder, "--write-timeout", "2", "--max-num-seqs", "24") as server:
        server.ready()
        with server.connect() as sock:
            sock.setsockopt(1, 8, 4096)  # SOL_SOCKET, SO_RCVBUF: the answer does not fit into it
            sock.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            seen = others_during(server, [LONG] * FEW, lambda: None)
            line = said(server, "did not read its answer", 60)
            began = time.monotonic()
            expect(eventually(lambda: is_idle(server)), "its work goes on")
        return Outcome(f"its connection is closed; others: {counted(seen)}", line, recovery(server, began))


@drill("heads that do not end (--head-timeout 1)")
def slow_head(folder: Path) -> Outcome:
    """Open connections that send a part of a head, a byte at a time."""
    with Server(folder, "--head-timeout", "1") as server:
        server.ready()
        received: list[bytes] = []
        seen = others_during(server, [LONG] * FEW, lambda: received.append(sent_raw(server, HEAD, 0.1)))
        expect(status_of(received[0]) == "408", f"its answer: {received[0]!r}")
        return Outcome(f"408 after 1 s; others: {counted(seen)}", seconds=recovery(server, time.monotonic()))


@drill("a body at one byte a second (--body-timeout 3)")
def slow_body(folder: Path) -> Outcome:
    """Send the body of a request very slowly."""
    with Server(folder, "--body-timeout", "3") as server:
        server.ready()
        with server.connect() as sock:
            sock.sendall(HEAD + b"Content-Length: 60\r\n\r\n")
            for _ in range(5):
                time.sleep(1)
                try:
                    sock.sendall(b" ")
                except OSError:
                    break
            status = status_of(sock.recv(65_536))
        expect(status == "408", f"its answer: {status}")
        return Outcome("408 after 3 s", said(server, "408 in"), recovery(server, time.monotonic()))


@drill("both lengths in one head")
def both_lengths(folder: Path) -> Outcome:
    """Send a request with Content-Length and Transfer-Encoding, and another one hidden behind it."""
    with Server(folder) as server:
        server.ready()
        hidden = b"0\r\n\r\nGET /v1/models HTTP/1.1\r\nHost: hidden\r\n\r\n"
        lengths = b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n" % len(hidden)
        received = sent_raw(server, HEAD + lengths + hidden)
        expect(status_of(received) == "400" and received.count(b"HTTP/1.1") == 1, f"its answer: {received!r}")
        return Outcome("400, and the connection is closed", seconds=recovery(server, time.monotonic()))


@drill("a body above --max-body-bytes, and 6 MB of text")
def large_bodies(folder: Path) -> Outcome:
    """Send what is too large, while others stream."""
    with Server(folder, "--max-body-bytes", "8000000") as server:
        server.ready()
        texts = ["a" * 9_000_000, "word " * 1_200_000]
        found: list[Seen] = []

        def fault() -> None:
            found.extend(server.ask(body={"messages": [{"role": "user", "content": text}]}) for text in texts)

        seen = others_during(server, [LONG] * FEW, fault)
        statuses = [each.status for each in found]
        expect(statuses == [413, 400], f"statuses {statuses}")
        gap = max(each.gap for each in seen)
        words = f"413 and 400 ({found[1].message}); others: {counted(seen)}, longest gap {gap:.2f} s"
        return Outcome(words, said(server, "413 in"), recovery(server, time.monotonic()))


@drill("hostile JSON: 10,000 levels, 2 million values, half a character")
def hostile_json(folder: Path) -> Outcome:
    """Send JSON that costs a parser more than it seems."""
    bodies = [b"[" * 10_000, b'{"messages": [' + b"0," * 2_000_000 + b"0]}", b'{"messages": "\xc3"}', b"{" * 60_000]
    with Server(folder) as server:
        server.ready()
        found: list[Seen] = []
        seen = others_during(server, [LONG] * FEW, lambda: found.extend(server.ask(body=body) for body in bodies))
        expect_all(found, "400")
        return Outcome(f"{counted(found)}; others: {counted(seen)}", seconds=recovery(server, time.monotonic()))


@drill("a hostile regex: a? and a, 10,000 times each")
def hostile_regex(folder: Path) -> Outcome:
    """Ask for a form whose automaton explodes, while others stream."""
    patterns = ["a?" * 10_000 + "a" * 10_000, "(a|aa)*" * 500 + "b", "(((a{1,99}){1,99}){1,99}){1,99}"]
    with Server(folder) as server:
        server.ready()
        found: list[Seen] = []
        seen = others_during(
            server,
            [LONG] * FEW,
            lambda: found.extend(server.ask(body={**HELLO, "guided_regex": each}) for each in patterns),
        )
        expect(all(each.status in (200, 400) for each in found), counted(found))
        gap = max(each.gap for each in seen)
        words = f"{counted(found)} ({found[0].message}); others: {counted(seen)}, longest gap {gap:.2f} s"
        return Outcome(words, seconds=recovery(server, time.monotonic()))


@drill("more requests than the queue holds (--max-queue 4, --max-num-seqs 2)")
def full_queue(folder: Path) -> Outcome:
    """Send 30 streams to a server that takes six."""
    with Server(folder, "--max-queue", "4", "--max-num-seqs", "2") as server:
        server.ready()
        with Load(server.ask, [LONG] * 30) as load:
            began = time.monotonic()
        refused = [each for each in load.seen if each.status == 429]
        expect(all(each.is_whole for each in load.seen), counted(load.seen))
        expect(bool(refused) and all(each.retry_after.isdigit() for each in refused), counted(load.seen))
        words = f"{counted(load.seen)}; Retry-After {min(int(each.retry_after) for each in refused)} s or more"
        return Outcome(words, said(server, "429 in"), recovery(server, began))


@drill("300 idle connections with 256 open files")
def idle_connections(folder: Path) -> Outcome:
    """Open more connections than the process may have, and leave them idle."""
    with Server(folder, preexec_fn=_few_files) as server:
        server.ready()
        with ExitStack() as stack:
            for _ in range(300):
                stack.enter_context(server.connect())
            began = time.monotonic()
            seconds = recovery(server, began)
            expect(server.ask("/health").status == 200, "/health has no answer")
            return Outcome(
                "/health 200 and a normal answer meanwhile; the oldest idle ones are closed", seconds=seconds
            )


def _few_files() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
