"""Faults with images: decoders that crash, bombs, and servers of images that hang, reset or trickle."""

from __future__ import annotations

import base64
import io
import os
import signal
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.faults.drill import DrillError, Outcome, drill, expect, others_during, recovery, said
from benchmarks.live.ask import LONG, Seen, counted
from benchmarks.live.server import Server

FETCH = ("--allow-private-addresses", "--fetch-timeout", "2")
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 100000\r\n\r\n"


def body(url: str) -> dict[str, Any]:
    """Return a request with an image."""
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is it?"}]
    return {"messages": [{"role": "user", "content": parts}], "max_tokens": 4}


def inline(data: bytes) -> dict[str, Any]:
    """Return a request with the bytes of an image."""
    return body("data:image/png;base64," + base64.b64encode(data).decode())


def picture(side: int) -> bytes:
    """Return a whole PNG that takes a moment to decode."""
    data = io.BytesIO()
    Image.effect_noise((side, side), 50).save(data, "PNG")
    return data.getvalue()


def bomb(side: int) -> bytes:
    """Return a small PNG of `side` x `side` black pixels of one bit."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    row = bytes(1 + side // 8)
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@contextmanager
def image_server(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """Run a server on the loopback interface that does with each connection what `serve` does; yield its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        kept: list[socket.socket] = []

        def run() -> None:
            with suppress(OSError):
                while True:
                    kept.append(listener.accept()[0])
                    with suppress(OSError):
                        kept[-1].recv(4096)
                        threading.Thread(target=_quietly, args=(serve, kept[-1]), daemon=True).start()

        threading.Thread(target=run, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/image.png"
        for each in kept:
            each.close()


def _quietly(serve: Callable[[socket.socket], None], sock: socket.socket) -> None:
    with suppress(OSError):
        serve(sock)


@drill("kill -9 of an image worker while it decodes")
def killed_worker(folder: Path) -> Outcome:
    """Kill the worker of a large image in the middle of its work."""
    with Server(folder) as server:
        server.ready()
        expect(server.ask(body=inline(picture(64))).status == 200, "an ordinary image is refused")
        large, found = inline(picture(4000)), list[Seen]()

        def fault() -> None:
            asked = threading.Thread(target=lambda: found.append(server.ask(body=large)))
            asked.start()
            os.kill(_busy_worker(server), signal.SIGKILL)
            asked.join()

        seen = others_during(server, [LONG] * 2, fault)
        began = time.monotonic()
        expect(found[0].status == 400, counted(found))
        expect(server.ask(body=inline(picture(65))).status == 200, "images are not answered any more")
        words = f"400 for that image ({found[0].message}); others: {counted(seen)}"
        return Outcome(words, said(server, "400 in"), time.monotonic() - began)


def _busy_worker(server: Server) -> int:
    """Return the worker that is the first to take a tenth of a second of processor time. Raises DrillError."""
    before = {pid: _ticks(pid) for pid in server.workers()}
    for _ in range(2000):
        for pid in server.workers():
            if _ticks(pid) - before.setdefault(pid, 0) >= 10:
                return pid
        time.sleep(0.005)
    raise DrillError("no worker decodes")


def _ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])


@drill("image bombs: 50,000 x 50,000 pixels of one bit, and a JPEG of nothing")
def bombs(folder: Path) -> Outcome:
    """Send images that would take gigabytes."""
    with Server(folder) as server:
        server.ready()
        before = server.memory()
        found: list[Seen] = []
        bodies = [inline(bomb(50_000)), inline(b"\xff\xd8\xff\xe0" + bytes(5000))]
        seen = others_during(server, [LONG] * 2, lambda: found.extend(server.ask(body=each) for each in bodies))
        expect([each.status for each in found] == [413, 400], counted(found))
        grown = (server.memory() - before) / 2**20
        words = f"413 ({found[0].message}) and 400; others: {counted(seen)}; memory {grown:+.0f} MiB"
        return Outcome(words, said(server, "413 in"), seconds=recovery(server, time.monotonic()))


def fetched(folder: Path, serve: Callable[[socket.socket], None]) -> Outcome:
    """Ask for an image of a server that does something bad, while others stream."""
    with Server(folder, *FETCH) as server, image_server(serve) as url:
        server.ready()
        found: list[Seen] = []
        seen = others_during(server, [LONG] * 2, lambda: found.append(server.ask(body=body(url))))
        expect(found[0].status == 400, f"{found[0].words} {found[0].message}")
        expect(found[0].seconds < 10, f"the answer took {found[0].seconds:.1f} s")
        words = f"400 after {found[0].seconds:.1f} s ({found[0].message}); others: {counted(seen)}"
        return Outcome(words.replace(url, "URL"), said(server, "400 in"), recovery(server, time.monotonic()))


@drill("the server of an image hangs (--fetch-timeout 2)")
def hanging(folder: Path) -> Outcome:
    """Fetch from a server that accepts and says nothing."""
    return fetched(folder, lambda sock: time.sleep(30))


@drill("the server of an image sends a byte a second (--fetch-timeout 2)")
def trickling(folder: Path) -> Outcome:
    """Fetch from a server that never ends."""

    def serve(sock: socket.socket) -> None:
        sock.sendall(ANSWER)
        for _ in range(30):
            time.sleep(1)
            sock.sendall(b"x")

    return fetched(folder, serve)


@drill("the server of an image resets the connection in the middle")
def resetting(folder: Path) -> Outcome:
    """Fetch from a server that breaks off."""

    def serve(sock: socket.socket) -> None:
        sock.sendall(ANSWER + bytes(5000))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()

    return fetched(folder, serve)


@drill("the server of an image redirects for ever")
def redirecting(folder: Path) -> Outcome:
    """Fetch from a server that always names itself."""

    def serve(sock: socket.socket) -> None:
        sock.sendall(b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        sock.close()

    return fetched(folder, serve)


@drill("20 clients with images that never come, and others with images")
def starving(folder: Path) -> Outcome:
    """Hold many fetches, and ask with an image that comes with its request."""
    with Server(folder, *FETCH) as server, image_server(lambda sock: time.sleep(30)) as url:
        server.ready()
        slow = [threading.Thread(target=server.ask, kwargs={"body": body(url)}) for _ in range(20)]
        for thread in slow:
            thread.start()
        time.sleep(0.5)
        answer = server.ask(body=inline(picture(448)))
        expect(answer.status == 200 and answer.seconds < 10, f"{answer.words} after {answer.seconds:.1f} s")
        for thread in slow:
            thread.join()
        return Outcome(f"others' images 200 after {answer.seconds:.1f} s", seconds=recovery(server, time.monotonic()))
