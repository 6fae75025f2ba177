"""Sends attacks on raw connections, and judges what comes back."""

from __future__ import annotations

import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from benchmarks.fuzz.mutate import Attack, attack

LAST = b"GET /version HTTP/1.1\r\nHost: fuzz\r\nConnection: close\r\n\r\n"
"""Follows every attack that is not cut, so that each connection has a reason to be closed."""
REFUSED = (501, 505)
"""Statuses above 499 by which HTTP wants unknown transfer encodings and versions refused."""
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
Address = tuple[str, int]


@dataclass(frozen=True)
class Reply:
    """What came back on one connection."""

    number: int
    attack: Attack
    statuses: tuple[int, ...]
    is_closed: bool
    """Whether the server has closed the connection in time."""

    @property
    def fault(self) -> str:
        """What is wrong with it; empty if nothing is."""
        broken = [status for status in self.statuses if status >= 500 and status not in REFUSED]
        problem = f"status {broken[0]}" if broken else "" if self.is_closed else "no end"
        return f"attack {self.number} ({self.attack.name}): {problem}: {self.attack.sent[:600]!r}" if problem else ""


@dataclass
class Report:
    """The sums of many replies."""

    sent: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    unanswered: int = 0
    faults: list[str] = field(default_factory=list)
    longest_normal: float = 0.0
    """Seconds of the slowest normal request between two hundreds of attacks."""

    def add(self, reply: Reply) -> None:
        """Count a reply."""
        self.sent += 1
        self.kinds[reply.attack.name] += 1
        self.statuses.update(reply.statuses)
        self.unanswered += not reply.statuses
        self.faults += [reply.fault] if reply.fault else []


def send(address: Address, number: int, what: Attack, limit: float) -> Reply:
    """Send one attack on a connection of its own, and read until the server closes it, for `limit` seconds."""
    received, deadline, is_closed = b"", time.monotonic() + limit, False
    with socket.create_connection(address, timeout=limit) as sock:
        try:
            sock.sendall(what.sent if what.is_cut else what.sent + LAST)
            if what.is_cut:
                sock.shutdown(socket.SHUT_WR)
            while not is_closed and time.monotonic() < deadline:
                data = sock.recv(65_536)
                received += data
                is_closed = not data
        except TimeoutError:
            pass
        except OSError:  # a reset, for instance of a body that nobody wants
            is_closed = True
    return Reply(number, what, tuple(map(int, _STATUS.findall(received))), is_closed)


def run(
    address: Address, seed: int, numbers: Iterable[int], *, concurrency: int, limit: float, normal: Callable[[], float]
) -> Report:
    """Send attacks, a hundred at a time, and call `normal` after each hundred, which returns its seconds."""
    report, waiting = Report(), list(numbers)
    with ThreadPoolExecutor(concurrency) as pool:
        while waiting:
            some, waiting = waiting[:100], waiting[100:]
            for reply in pool.map(lambda number: send(address, number, attack(seed, number), limit), some):
                report.add(reply)
            report.longest_normal = max(report.longest_normal, normal())
    return report
