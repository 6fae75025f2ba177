"""A client that costs little: many streams of one process, on connections that stay open, timed to the first token."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.scale.validation.script import CHAT, Item

DONE = b"data: [DONE]"


@dataclass(slots=True)
class Seen:
    """What the client saw of a request. Times are in seconds since the beginning of the run."""

    due: float
    server: int
    status: int = 0
    first: float = 0.0
    ended: float = 0.0
    num_cached: int = 0

    @property
    def ttft(self) -> float:
        """Seconds from when it was due to its first token."""
        return self.first - self.due


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
IDLE = 2.0
"""The most seconds for which a connection is kept without a request; servers close it after five."""


@dataclass
class Connections:
    """Open connections to one server, which requests take and give back."""

    port: int
    _free: list[tuple[float, Connection]] = field(default_factory=list)

    async def take(self) -> Connection:
        """Return a connection without a request."""
        while self._free:
            since, connection = self._free.pop()
            if time.monotonic() - since < IDLE:
                return connection
            connection[1].close()
            await connection[1].wait_closed()
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def close(self) -> None:
        """Close all connections, which have no requests any more."""
        for _, (_, writer) in self._free:
            writer.close()
            await writer.wait_closed()

    def give(self, connection: Connection) -> None:
        """Keep a connection for the next request."""
        self._free.append((time.monotonic(), connection))


class Client:
    """Sends requests to the servers that a router chooses, and knows how many each has."""

    def __init__(self, ports: Sequence[int], choose: Callable[[str, dict[int, Client.Load]], int]) -> None:
        self._connections = [Connections(port) for port in ports]
        self._loads = {number: Client.Load() for number in range(len(ports))}
        self._choose = choose
        self.seen: list[Seen] = []
        self.began = time.monotonic()

    @dataclass(slots=True)
    class Load:
        """The requests that a server has."""

        num_outstanding: int = 0

    def run(self, items: Sequence[Item], at_once: int = 0) -> list[Seen]:
        """Send the requests when they are due or, with `at_once`, so many at a time; return what was seen."""
        asyncio.run(self._run(items, at_once))
        return self.seen

    async def _run(self, items: Sequence[Item], at_once: int) -> None:
        await (self._closed(items, at_once) if at_once else self._opened(items))
        for connections in self._connections:
            await connections.close()

    async def _opened(self, items: Sequence[Item]) -> None:
        ready = [(item, item.data) for item in items]
        self.began = time.monotonic() + 0.1
        tasks = []
        for item, data in ready:
            await asyncio.sleep(max(0.0, self.began + item.due - time.monotonic()))
            tasks.append(asyncio.create_task(self._ask(item.key, data, item.due)))
        await asyncio.gather(*tasks)

    async def _closed(self, items: Sequence[Item], at_once: int) -> None:
        waiting = iter([(item, item.data) for item in items])
        self.began = time.monotonic()

        async def work() -> None:
            for item, data in waiting:
                await self._ask(item.key, data, time.monotonic() - self.began)

        await asyncio.gather(*(work() for _ in range(at_once)))

    async def _ask(self, key: str, data: bytes, due: float) -> None:
        number = self._choose(key, self._loads)
        load, connections = self._loads[number], self._connections[number]
        load.num_outstanding += 1
        seen = Seen(due, number)
        self.seen.append(seen)
        try:
            reader, writer = await connections.take()
            head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
            writer.write(head.encode() + b"\r\n\r\n" + data)
            await self._read(reader, seen)
            connections.give((reader, writer))
        except (OSError, asyncio.IncompleteReadError):
            seen.status = 0
        finally:
            seen.ended = time.monotonic() - self.began
            load.num_outstanding -= 1

    async def _read(self, reader: asyncio.StreamReader, seen: Seen) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        seen.status = int(head.split(None, 2)[1])
        if b"chunked" not in head.lower():
            length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line[:15] == b"content-length:")
            await reader.readexactly(length)
            return
        while size := int(await reader.readline(), 16):
            chunk = await reader.readexactly(size + 2)
            if not seen.first and b"data:" in chunk:
                seen.first = time.monotonic() - self.began
            if b'"cached_tokens":' in chunk:
                seen.num_cached = int(chunk.partition(b'"cached_tokens":')[2].split(b",")[0].strip(b" }"))
        await reader.readline()
