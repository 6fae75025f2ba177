"""Limits the number of requests at a time, and refuses new requests once the server is stopping."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ternvl.errors import OverloadedError, UnavailableError
from ternvl.server.connection.writing import TimedResponse
from ternvl.server.errors import ClientGone, HTTPError, to_http
from ternvl.server.guard.returns import Returns

_SLOW_SECONDS = 10.0
"""The seconds before a body's rate counts."""

_ARRIVING_FOR_EACH_WORKING = 4
"""The requests that may be there for each that may work: the others are still sending their bodies."""


@dataclass(frozen=True, slots=True)
class GateLimits:
    """What the requests may take of the server."""

    max_working: int
    """The requests whose body has arrived and whose answer has not ended."""
    max_total_body_bytes: int = 256 * 1024**2
    min_body_rate: int = 1_000
    """Bytes per second, on average over the time that a body takes."""
    write_timeout: float = 60.0
    """The most seconds that a client may take to read a part of its answer."""


class Gate:
    """Counts the requests, each from its first byte to the last byte of its answer.

    A request takes a place among the working ones once its body has arrived, so clients that send slowly keep nobody
    else out.
    """

    def __init__(self, limits: GateLimits, retry_after: Callable[[int], int]) -> None:
        """`retry_after` estimates the seconds until so many requests have ended."""
        self.draining = False
        self.gave_up = False
        self.limits = limits
        self.returns = Returns(retry_after)
        self._tasks: set[asyncio.Task[object]] = set()
        self._num_working = 0
        self._num_body_bytes = 0

    @property
    def num_running(self) -> int:
        return len(self._tasks)

    def enter(self) -> None:
        """Count the current task as a request until it ends. Raises the errors of `check`."""
        with self._asking_to_return():
            self.check()
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def check(self) -> None:
        """Raise UnavailableError while draining, OverloadedError if there is no room for another request."""
        if self.draining:
            raise UnavailableError("The server is stopping and takes no new requests.")
        self._check_room(self._num_working, self.limits.max_working)
        self._check_room(len(self._tasks), _ARRIVING_FOR_EACH_WORKING * self.limits.max_working)

    def _check_room(self, number: int, limit: int) -> None:
        if number >= limit:
            message = f"The server already works on {limit} requests, which is its limit."
            raise OverloadedError(message, retry_after=self.returns.next())

    @contextmanager
    def _asking_to_return(self) -> Iterator[None]:
        """Note when a client that is refused in this context is asked to return."""
        try:
            yield
        except OverloadedError as error:
            self.returns.expect(error.retry_after or 1)
            raise

    def begin_work(self) -> None:
        """Count a request whose body has arrived as working. Raises OverloadedError if as many work as may."""
        with self._asking_to_return():
            self._check_room(self._num_working, self.limits.max_working)
        self._num_working += 1

    def end_work(self) -> None:
        """Stop counting a request as working."""
        self._num_working -= 1

    def hold(self, num_bytes: int) -> None:
        """Count bytes of a body that is held in memory. Raises OverloadedError if all bodies have too many bytes."""
        if self._num_body_bytes + num_bytes > self.limits.max_total_body_bytes:
            limit = self.limits.max_total_body_bytes
            message = f"The bodies of all requests together may have {limit} bytes, and there is no room for this one."
            with self._asking_to_return():
                raise OverloadedError(message, retry_after=self.returns.next())
        self._num_body_bytes += num_bytes

    def let_go(self, num_bytes: int) -> None:
        """Stop counting bytes that `hold` has counted."""
        self._num_body_bytes -= num_bytes

    async def wait_until_empty(self, seconds: float) -> bool:
        """Wait for all requests to end, and return whether they have ended within `seconds`."""
        return not self._tasks or not (await asyncio.wait(tuple(self._tasks), timeout=seconds))[1]

    def give_up(self) -> None:
        """Cancel the requests that still run. Those whose answer has not begun get 503."""
        self.gave_up = True
        for task in tuple(self._tasks):
            task.cancel()


class Gated:
    """ASGI middleware that passes requests through a gate. Only POST requests are counted."""

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self._app = app
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 429 or 503 in place of the application while the gate is closed."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        answer = TimedResponse(send, self._gate.limits.write_timeout, lambda: self._gate.draining)
        try:
            with suppress(ClientGone):
                await self._pass(scope, receive, answer)
        finally:
            answer.end()

    async def _pass(self, scope: Scope, receive: Receive, answer: TimedResponse) -> None:
        if scope["method"] != "POST":
            return await self._app(scope, receive, answer.send)
        try:
            self._gate.enter()
        except (UnavailableError, OverloadedError) as error:
            return await to_http(error).response(scope)(scope, receive, answer.send)
        await self._run(scope, receive, answer)

    async def _run(self, scope: Scope, receive: Receive, answer: TimedResponse) -> None:
        body = _Body(self._gate, scope, receive)
        try:
            await self._app(scope, body.receive, answer.send)
        except asyncio.CancelledError:
            if answer.has_begun or not self._gate.gave_up:
                raise
            error = UnavailableError("The server is stopping and gave this request up.")
            await to_http(error).response(scope)(scope, receive, answer.send)
        finally:
            body.end()


class _Body:
    """Receives a request's body, which must arrive at a least rate."""

    def __init__(self, gate: Gate, scope: Scope, receive: Receive) -> None:
        self._gate = gate
        self._receive = receive
        self._started = time.monotonic()
        # The files of a form are kept on the disk, not in memory.
        self._is_form = Headers(scope=scope).get("content-type", "").startswith("multipart/")
        self._size = self._num_held = 0
        self._is_working = False

    async def receive(self) -> Message:
        """Return the next message. Raises HTTPError 408 for a body that is too slow, and OverloadedError."""
        if self._is_working:
            return await self._receive()
        message = await self._next()
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            if not self._is_form:
                self._gate.hold(size)
                self._num_held += size
            self._size += size
            if not message.get("more_body"):
                self._gate.begin_work()
                self._is_working = True
        return message

    async def _next(self) -> Message:
        rate = self._gate.limits.min_body_rate
        seconds = _SLOW_SECONDS + self._size / rate - (time.monotonic() - self._started)
        try:
            async with asyncio.timeout(max(0.0, seconds)) as limit:
                return await self._receive()
        except TimeoutError:
            if not limit.expired():
                raise
            message = f"The request body arrives at less than {rate} bytes a second (--min-body-rate)."
            raise HTTPError(408, message, headers={"Connection": "close"}) from None

    def end(self) -> None:
        """Give back what the request has taken of the gate."""
        self._gate.let_go(self._num_held)
        self._num_held = 0
        if self._is_working:
            self._is_working = False
            self._gate.end_work()
