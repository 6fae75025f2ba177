"""How many requests are let in, and none any more once the server stops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ternvl.errors import OverloadedError, UnavailableError
from ternvl.server.errors import to_http

_DISCARD_SECONDS = 2.0


class Gate:
    """Knows the requests that bring work, from their first byte to their answer's last."""

    def __init__(self, limit: int, retry_after: Callable[[], int]) -> None:
        """At most `limit` are in at a time; `retry_after` estimates the seconds until another one may come."""
        self.draining = False
        self.gave_up = False
        self._limit = limit
        self._retry_after = retry_after
        self._visits: set[asyncio.Task[object]] = set()

    @property
    def num_running(self) -> int:
        return len(self._visits)

    def enter(self) -> None:
        """The running task is a request. Raises what `check` raises."""
        self.check()
        task = asyncio.current_task()
        assert task is not None
        self._visits.add(task)
        task.add_done_callback(self._visits.discard)

    def check(self) -> None:
        """Raises UnavailableError while draining, OverloadedError where all are in that may be."""
        if self.draining:
            raise UnavailableError("The server is stopping and takes no new requests.")
        if self.num_running >= self._limit:
            message = f"The server already works on {self._limit} requests, which is all it takes at a time."
            raise OverloadedError(message, retry_after=self._retry_after())

    async def wait_until_empty(self, seconds: float) -> bool:
        """Whether all requests ended within this time."""
        return not self._visits or not (await asyncio.wait(tuple(self._visits), timeout=seconds))[1]

    def give_up(self) -> None:
        """Cancel the requests that are still here. Those whose answer has not begun get 503."""
        self.gave_up = True
        for task in tuple(self._visits):
            task.cancel()


class Gated:
    """ASGI middleware that lets requests through a gate; only those that bring work are counted."""

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self._app = app
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 429 or 503 in place of the application where the gate is closed."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        answer = _Answer(self._gate, send)
        if scope["method"] != "POST":
            return await self._app(scope, receive, answer.send)
        try:
            self._gate.enter()
        except UnavailableError as error:
            with suppress(TimeoutError):  # what is closed upon unread bytes may lose the answer on its way
                await asyncio.wait_for(_discard(receive), _DISCARD_SECONDS)
            await to_http(error).response(scope["path"])(scope, receive, answer.send)
        except OverloadedError as error:
            await to_http(error).response(scope["path"])(scope, receive, answer.send)
        else:
            await self._visit(scope, receive, answer)

    async def _visit(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        try:
            await self._app(scope, receive, answer.send)
        except asyncio.CancelledError:
            if answer.has_begun or not self._gate.gave_up:
                raise
            error = UnavailableError("The server is stopping and gave this request up.")
            await to_http(error).response(scope["path"])(scope, receive, answer.send)


class _Answer:
    """Sends an answer; the last one of its connection once the server stops."""

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
