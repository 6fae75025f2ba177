"""The id of a request, `x-request-id`: the client's own, or a new one."""

from __future__ import annotations

import re
from secrets import token_hex

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ternvl.server.log.lines import request_id as current

HEADER = "x-request-id"

_VALID = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,126}[\x21-\x7e])?")
"""1 to 128 printable ASCII characters, with no space at either end."""


def in_words() -> str:
    """Return " (request ID)" for log lines and messages; empty text outside of a request."""
    return f" (request {current.get()})" if current.get() else ""


class Identified:
    """ASGI middleware that takes the id of a request or makes one, and returns it with every answer.

    An id of the client that is no valid header value or longer than 128 characters is replaced by a new one.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its id in `current`."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = Headers(scope=scope).get(HEADER, "")
        request_id = given if _VALID.fullmatch(given) else f"req_{token_hex(12)}"

        async def identified(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        token = current.set(request_id)
        try:
            await self._app(scope, receive, identified)
        finally:
            current.reset(token)
