"""Limits the number of requests at a time, and refuses new requests once the server is stopping."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ternvl.errors import OverloadedError, UnavailableError
from ternvl.server.errors import to_http

_DISCARD_SECONDS = 2.0
"""The most seconds for reading the body of a request that is refused."""


class Gate:
    """Counts the running requests, each from its first byte to the last byte of its answer."""

    def __init__(self, limit: int, retry_after: Callable[[], int]) -> None:
        """At most `limit` requests run at a time. `retry_after` estimates the seconds until there is room."""
        self.draining = False
        self.gave_up = False
        self._limit = limit
        self._retry_after = retry_after
        self._tasks: set[asyncio.Task[object]] = set()

    @property
    def num_running(self) -> int:
        return len(self._tasks)

    def enter(self) -> None:
        """Count the current task as a request until it ends. Raises the errors of `check`."""
        self.check()
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def check(self) -> None:
        """Raise UnavailableError while draining, OverloadedError if the limit of running requests is reached."""
        if self.draining:
            raise UnavailableError("The server is stopping and takes no new requests.")
        if self.num_running >= self._limit:
            message = f"The server already works on {self._limit} requests, which is its limit."
            raise OverloadedError(message, retry_after=self._retry_after())

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
        answer = _Response(self._gate, send)
        if scope["method"] != "POST":
            return await self._app(scope, receive, answer.send)
        try:
            self._gate.enter()
        except UnavailableError as error:
            with suppress(TimeoutError):  # the answer can be lost if a connection is closed with unread bytes
                await asyncio.wait_for(_discard(receive), _DISCARD_SECONDS)
            await to_http(error).response(scope)(scope, receive, answer.send)
        except OverloadedError as error:
            await to_http(error).response(scope)(scope, receive, answer.send)
        else:
            await self._run(scope, receive, answer)

    async def _run(self, scope: Scope, receive: Receive, answer: _Response) -> None:
        try:
            await self._app(scope, receive, answer.send)
        except asyncio.CancelledError:
            if answer.has_begun or not self._gate.gave_up:
                raise
            error = UnavailableError("The server is stopping and gave this request up.")
            await to_http(error).response(scope)(scope, receive, answer.send)


class _Response:
    """Sends an answer, and closes its connection if the server is stopping."""

    def __init__(self, gate: Gate, send: Send) -> None:
        self.has_begun = False
        self._gate = gate
        self._send = send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_begun = True
            if self._gate.draining:
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
        await self._send(message)


async def _discard(receive: Receive) -> None:
    while (await receive()).get("more_body"):
        pass
