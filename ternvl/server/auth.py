"""One key for all clients, as a bearer token or, as Anthropic's clients send it, as `x-api-key`."""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ternvl.server.errors import HTTPError

OPEN_PATHS = frozenset({"/health", "/ready"})
"""Paths that need no key: what probes ask."""


class BearerAuth:
    """ASGI middleware that answers 401 unless the request carries the key."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self._app = app
        self._api_key = api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes requests on that carry the key or need none."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if not key:
            scheme, key = "bearer", headers.get("x-api-key", "")
        # Latin-1 gives the bytes of the header back. They are compared in constant time: how long it takes must not
        # tell how much of a guess was right.
        if scheme.lower() == "bearer" and hmac.compare_digest(key.strip().encode("latin-1"), self._api_key):
            return await self._app(scope, receive, send)
        message = "The API key is wrong." if key else "An API key is needed: send it as `Authorization: Bearer KEY`."
        error = HTTPError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        await error.response(scope["path"])(scope, receive, send)
