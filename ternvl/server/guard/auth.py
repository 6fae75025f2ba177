"""Checks keys: one for all clients and one for administrators.

A key is sent as a bearer token or, as Anthropic's clients do, in the header `x-api-key`.
"""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ternvl.server.errors import HTTPError

ACCESS = "ternvl.access"
"""The key of an ASGI scope for the access to the endpoint: "open" for everyone, "admin", or "key", the default."""


class BearerAuth:
    """ASGI middleware that answers 401 unless a request has the key that its endpoint needs.

    Every endpoint also accepts the admin key.
    """

    def __init__(self, app: ASGIApp, api_key: str | None, admin_key: str | None = None) -> None:
        self._app = app
        self._api_key = api_key
        self._admin_key = admin_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on requests that have the key or need none."""
        keys = self._keys(scope.get(ACCESS, "key")) if scope["type"] == "http" else []
        if not keys:
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if not key:
            scheme, key = "bearer", headers.get("x-api-key", "")
        # Latin-1 restores the bytes of the header. Each key is compared, in constant time, so that the time that an
        # answer takes does not reveal how much of a guess was right.
        given = key.strip().encode("latin-1")
        num_right = sum(hmac.compare_digest(given, each) for each in keys)
        if scheme.lower() == "bearer" and num_right:
            return await self._app(scope, receive, send)
        kind = "admin" if scope.get(ACCESS) == "admin" and self._admin_key else "API"
        needed = f"This endpoint needs the {kind} key; send it as `Authorization: Bearer KEY`."
        message = f"The {kind} key is wrong." if key else needed
        error = HTTPError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        await error.response(scope)(scope, receive, send)

    def _keys(self, access: str) -> list[bytes]:
        """Return the keys that give this access; an empty list if no key is needed."""
        if access == "open":
            return []
        if access == "admin" and self._admin_key:
            return [self._admin_key.encode()]
        return [each.encode() for each in (self._api_key, self._admin_key) if each] if self._api_key else []
