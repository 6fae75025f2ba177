"""A request on its way to a replica, and the answer of the replica's application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, MutableMapping
from dataclasses import dataclass
from typing import Any

Message = MutableMapping[str, Any]
"""A message of ASGI."""

REPLICA = "ternvl.replica"
"""The key under which the first message of an answer has the replica's name."""

_LEAVING_SECONDS = 10.0
"""How long an application may take to end a request whose client has left."""


@dataclass(frozen=True, slots=True)
class ForwardedRequest:
    """An HTTP request as it came, whole, with what it is routed by."""

    scope: dict[str, Any]
    """The fields of the ASGI scope that can be sent between processes."""
    body: bytes
    key: bytes = b""
    """Requests with the same key prefer the same replica; empty for any."""
    avoid: frozenset[str] = frozenset()
    """The replicas that have failed on this request."""


_FORWARDED = ("http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "headers", "client")


def forwarded(scope: MutableMapping[str, Any]) -> dict[str, Any]:
    """Return what is sent of an ASGI scope."""
    return {"type": "http", "asgi": {"version": "3.0"}} | {name: scope[name] for name in _FORWARDED if name in scope}


async def answers(app: Any, request: ForwardedRequest) -> AsyncGenerator[list[Message]]:
    """Run an ASGI application on a request and yield the messages of its answer, as many at once as there are.

    Closing the generator, or cancelling its task, is the client's leaving, and waits until the application has ended.
    Raises what the application raises.
    """
    messages: asyncio.Queue[Message | None] = asyncio.Queue()
    has_left = asyncio.Event()
    bodies: list[Message] = [{"type": "http.request", "body": request.body, "more_body": False}]

    async def receive() -> Message:
        if bodies:
            return bodies.pop()
        await has_left.wait()
        return {"type": "http.disconnect"}

    async def run() -> None:
        try:
            await app(dict(request.scope), receive, messages.put)
        finally:
            messages.put_nowait(None)

    task = asyncio.create_task(run())
    try:
        is_open = True
        while is_open:
            ready = [await messages.get()]
            while not messages.empty():
                ready.append(messages.get_nowait())
            is_open = None not in ready
            if sent := [message for message in ready if message is not None]:
                yield sent
        await task
    finally:
        has_left.set()
        await asyncio.wait({task}, timeout=_LEAVING_SECONDS)
        task.cancel()
