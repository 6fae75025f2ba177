"""Server-sent events: a stream of JSON values that ends with `[DONE]`, or with an error."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ternvl.server.errors import to_http

T = TypeVar("T")


class ClientGone(Exception):
    """The client closed the connection; there is no one to answer."""


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled where the client leaves first: then ClientGone is raised.

    The request's body must have been read.
    """
    task = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait((task, leaving), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        task.cancel()
        leaving.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def event(value: Any) -> bytes:
    """One event: `data: {json}` and an empty line."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class EventStream(Response):
    """Sends what `shape` makes of each value, as they come, and closes their generator when the client leaves."""

    def __init__(
        self,
        first: T,
        rest: AsyncGenerator[T],
        shape: Callable[[T], Any],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`first` was drawn from `rest` before the answer began, so that an early failure has a status of its own.

        A value of which `shape` makes None is not sent.
        """
        super().__init__(media_type="text/event-stream")
        self._first = first
        self._rest = rest
        self._shape = shape
        del self.headers["content-length"]
        self.headers.update({"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises nothing of the values' errors: a failure is the stream's last event."""
        async with aclosing(self._rest):
            with suppress(ClientGone):
                await until_disconnect(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            await self._send_value(send, self._first)
            async for value in self._rest:
                await self._send_value(send, value)
        except Exception as error:
            await _send_body(send, event(to_http(error).body))
        else:
            await _send_body(send, b"data: [DONE]\n\n")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_value(self, send: Send, value: Any) -> None:
        shaped = self._shape(value)
        if shaped is not None:
            await _send_body(send, event(shaped))


async def _send_body(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})
