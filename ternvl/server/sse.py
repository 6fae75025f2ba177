"""Server-sent events: a stream of JSON values, each as its protocol writes it, that may end with an error."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ternvl.server.errors import HTTPError, to_http

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


def named_event(value: Mapping[str, Any]) -> bytes:
    """An event that bears the name of its value's `type`."""
    return f"event: {value['type']}\n".encode() + event(value)


@dataclass(frozen=True)
class Form(Generic[T]):
    """How a protocol writes its stream."""

    event: Callable[[T], bytes]
    """Of a value; nothing where it is not sent."""
    failure: Callable[[HTTPError], bytes]
    """The last event of a stream that fails."""
    end: bytes = b""
    """What a stream that does not fail ends with."""


class EventStream(Response):
    """Sends values as they come, and closes their generator when the client leaves."""

    def __init__(
        self,
        first: T,
        rest: AsyncGenerator[T],
        form: Form[T],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`first` was drawn from `rest` before the answer began, so that an early failure has a status of its own."""
        super().__init__(media_type="text/event-stream")
        self._first = first
        self._rest = rest
        self._form: Form[Any] = form
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
            await _send_body(send, self._form.event(self._first))
            async for value in self._rest:
                await _send_body(send, self._form.event(value))
        except Exception as error:
            await _send_body(send, self._form.failure(to_http(error)))
        else:
            await _send_body(send, self._form.end)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_body(send: Send, data: bytes) -> None:
    if data:
        await send({"type": "http.response.body", "body": data, "more_body": True})
