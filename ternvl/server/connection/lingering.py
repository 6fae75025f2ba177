"""Reads on after an answer that refuses a request, so that a client that is still sending its body can read it.

If a connection is closed while bytes of a request are unread, the system resets it, and the answer may be lost. So the
rest of the body is read and dropped before the answer ends, for a limited time. nginx calls this `lingering_close`.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECONDS = 5.0
"""The most seconds for which the rest of a body is read."""


class Lingering:
    """ASGI middleware that lets no answer end while its request's body is on the way."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and read what is left of its body."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        exchange = _OpenRequest(Headers(scope=scope), receive, send)
        await self._app(scope, exchange.receive, exchange.send)
        await exchange.finish()


class _OpenRequest:
    """One request and its answer."""

    def __init__(self, headers: Headers, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        # Reading would ask such a client for the body.
        is_waited_for = headers.get("expect", "").lower() == "100-continue"
        self._is_unread = has_body and not is_waited_for
        self._is_held = False  # whether the end of the answer is not sent yet

    async def receive(self) -> Message:
        """Return the next message, and note whether more of the body follows."""
        message = await self._receive()
        self._is_unread = message["type"] == "http.request" and bool(message.get("more_body"))
        return message

    async def send(self, message: Message) -> None:
        """Send a message; keep the end of the answer back while the body is on the way."""
        if self._is_unread and message["type"] == "http.response.body" and not message.get("more_body"):
            self._is_held = True
            message = {**message, "more_body": True}
        await self._send(message)

    async def finish(self) -> None:
        """Read the rest of the body if the end of the answer was kept back, and send the end."""
        if not self._is_held:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(SECONDS):
                while self._is_unread:
                    await self.receive()
        await self._send({"type": "http.response.body"})
