"""Server-sent events: streams of JSON values in the form of a protocol, which may end with an error."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ternvl.server.errors import ClientGone, HTTPError, to_http

T = TypeVar("T")


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`. If the client disconnects first, `work` is cancelled and ClientGone is raised.

    The body of the request must have been read before.
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
    """Return one event: `data: {json}` and an empty line."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def named_event(value: Mapping[str, Any]) -> bytes:
    """Return one event whose name is the `type` of its value."""
    return f"event: {value['type']}\n".encode() + event(value)


@dataclass(frozen=True)
class Form(Generic[T]):
    """The form of a protocol's streams."""

    event: Callable[[T], bytes]
    """Returns the event of a value; empty bytes if the value is not sent."""
    failure: Callable[[HTTPError], bytes]
    """Returns the last event of a stream that fails."""
    end: bytes = b""
    """The last bytes of a stream that does not fail."""


class EventStream(Response):
    """A response that sends values as they are generated, and closes their generator if the client disconnects."""

    def __init__(
        self,
        first: T,
        rest: AsyncGenerator[T],
        form: Form[T],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`first` is the first value of the generator `rest`. It is taken before the response begins, so that a failure
        before it can have an error status."""
        super().__init__(media_type="text/event-stream")
        self._first = first
        self._rest = rest
        self._form: Form[Any] = form
        del self.headers["content-length"]
        self.headers.update({"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream. An error of the generator is not raised; it becomes the last event."""
        async with aclosing(self._rest):
            with suppress(ClientGone):
                await until_disconnect(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            await _send_body(send, self._form.event(self._first))
            async for value in self._rest:
                await _send_body(send, self._form.event(value))
        except ClientGone:
            raise
        except Exception as error:
            await _send_body(send, self._form.failure(to_http(error)))
        else:
            await _send_body(send, self._form.end)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_body(send: Send, data: bytes) -> None:
    if data:
        await send({"type": "http.response.body", "body": data, "more_body": True})
