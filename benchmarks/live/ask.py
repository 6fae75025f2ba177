"""A plain client: one request on a connection of its own, and what came back of it."""

from __future__ import annotations

import http.client
import json
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

HELLO = {"messages": [{"role": "user", "content": "Name the european capitals"}], "max_tokens": 16, "temperature": 0}
LONG = {**HELLO, "max_tokens": 400, "ignore_eos": True, "stream": True}
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Seen:
    """What a client saw: the status (0 without an answer), the body, how it ended, and times in seconds."""

    status: int
    body: bytes = b""
    is_cut: bool = False
    """Whether the connection was lost before the answer's end."""
    is_stream: bool = False
    seconds: float = 0.0
    first: float = 0.0
    """Until the first token of a stream."""
    gap: float = 0.0
    """The longest time between two events of a stream."""
    retry_after: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether all of the answer came; for a stream, without an error."""
        return self.status > 0 and not self.is_cut and (not self.is_stream or self.body.endswith(DONE))

    @property
    def words(self) -> str:
        """Its kind, as a table shows it."""
        if not self.status:
            return "no answer"
        if self.is_cut:
            return f"{self.status}, cut"
        if not self.is_stream:
            return str(self.status)
        return "stream whole" if self.is_whole else "stream ended by an error event"

    @property
    def message(self) -> str:
        """The message of an error answer, or of the error event at the end of a stream; empty without one."""
        try:
            error = json.loads(self.body.strip().split(b"data: ")[-1])["error"]
            return str(error["message"])
        except (ValueError, KeyError, TypeError):
            return ""

    @property
    def text(self) -> str:
        """The text of a whole answer of chat completions."""
        return str(json.loads(self.body)["choices"][0]["message"]["content"])


def ask(
    address: tuple[str, int],
    path: str,
    body: Any = None,
    *,
    seconds: float = 120.0,
    tls: bool = False,
    key: str | None = None,
    headers: dict[str, str] | None = None,
    started: threading.Event | None = None,
    pace: Callable[[int], None] | None = None,
) -> Seen:
    """Send one request: POST with a body, else GET. `started` is set at a stream's first token.

    `pace` is called after each line of a stream with its number; it may wait, as a slow reader, or raise
    ConnectionError, as a client that leaves.
    """
    began = time.monotonic()
    connection = _connection(address, seconds, tls)
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    sent = {"Content-Type": "application/json", "Connection": "close", **(headers or {})}
    sent |= {"Authorization": f"Bearer {key}"} if key else {}
    try:
        connection.request("GET" if content is None else "POST", path, content, sent)
        answer = connection.getresponse()
        retry_after = answer.getheader("retry-after") or ""
        if "event-stream" in (answer.getheader("content-type") or ""):
            return _stream(answer, began, started, pace)
        try:
            return Seen(answer.status, answer.read(), seconds=time.monotonic() - began, retry_after=retry_after)
        except http.client.IncompleteRead as error:
            return Seen(answer.status, error.partial, is_cut=True, seconds=time.monotonic() - began)
    except (OSError, http.client.HTTPException):
        return Seen(0, seconds=time.monotonic() - began)
    finally:
        connection.close()


def _connection(address: tuple[str, int], seconds: float, tls: bool) -> http.client.HTTPConnection:
    if not tls:
        return http.client.HTTPConnection(*address, timeout=seconds)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # the drills' certificates are self-signed
    return http.client.HTTPSConnection(*address, timeout=seconds, context=context)


def _stream(
    answer: http.client.HTTPResponse,
    began: float,
    started: threading.Event | None,
    pace: Callable[[int], None] | None,
) -> Seen:
    lines, last, first, gap, is_cut = [], began, 0.0, 0.0, False
    try:
        while line := answer.readline():
            lines.append(line)
            if line.startswith(b"data:"):
                now = time.monotonic()
                gap, last = max(gap, now - last) if first else 0.0, now
                if not first and (b'"content":"' in line or b'"text":"' in line) and b'"content":""' not in line:
                    first = now - began
                    if started is not None:
                        started.set()
            if pace is not None:
                pace(len(lines))
    except (OSError, http.client.HTTPException):
        is_cut = True
    body = b"".join(lines)
    is_cut = is_cut or not (body.endswith(DONE) or b'"error"' in body[-2000:] or b"message_stop" in body[-200:])
    return Seen(answer.status, body, is_cut, True, time.monotonic() - began, first, gap)


def counted(all_seen: Iterable[Seen]) -> str:
    """Return how often each kind was seen, in words."""
    counts = Counter(each.words for each in all_seen)
    return ", ".join(f"{count} x {words}" if count > 1 else words for words, count in sorted(counts.items()))


class Load:
    """Clients that each send their request at once; leaving the context waits for all answers."""

    def __init__(self, send: Callable[..., Seen], bodies: Sequence[Any]) -> None:
        """`send` is `Server.ask`."""
        self.seen: list[Seen] = []
        self._started = [threading.Event() for _ in bodies]
        self._threads = [
            threading.Thread(target=self._run, args=(send, body, started), daemon=True)
            for body, started in zip(bodies, self._started, strict=True)
        ]

    def _run(self, send: Callable[..., Seen], body: Any, started: threading.Event) -> None:
        try:
            self.seen.append(send(body=body, started=started))
        finally:
            started.set()

    def __enter__(self) -> Load:
        """Return once each stream has had its first token, or has ended."""
        for thread in self._threads:
            thread.start()
        for started in self._started:
            started.wait(120)
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.join()
