"""One key for all clients and one for administrators, as a bearer token or, as Anthropic's clients send it, as
`x-api-key`."""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ternvl.server.errors import HTTPError

OPEN_PATHS = frozenset({"/health", "/ready"})
"""Paths that need no key: what probes ask."""

ADMIN_PATHS = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/upload_lora_adapter"})
"""Paths that need the admin key, where there is one: they change what others get."""


class BearerAuth:
    """ASGI middleware that answers 401 unless the request carries the key that its path needs. The admin key opens
    every path."""

    def __init__(self, app: ASGIApp, api_key: str | None, admin_key: str | None = None) -> None:
        self._app = app
        self._api_key = api_key
        self._admin_key = admin_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes requests on that carry the key or need none."""
        keys = self._keys(scope["path"]) if scope["type"] == "http" else []
        if not keys:
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if not key:
            scheme, key = "bearer", headers.get("x-api-key", "")
        # Latin-1 gives the bytes of the header back. They are compared in constant time: how long it takes must not
        # tell how much of a guess was right, so each key is compared.
        given = key.strip().encode("latin-1")
        num_right = sum(hmac.compare_digest(given, each) for each in keys)
        if scheme.lower() == "bearer" and num_right:
            return await self._app(scope, receive, send)
        kind = "admin" if scope["path"] in ADMIN_PATHS and self._admin_key else "API"
        needed = f"An {kind} key is needed: send it as `Authorization: Bearer KEY`."
        message = f"The {kind} key is wrong." if key else needed
        error = HTTPError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        await error.response(scope["path"])(scope, receive, send)

    def _keys(self, path: str) -> list[bytes]:
        """The keys that open a path; none where it is open."""
        if path in OPEN_PATHS:
            return []
        if path in ADMIN_PATHS and self._admin_key:
            return [self._admin_key.encode()]
        return [each.encode() for each in (self._api_key, self._admin_key) if each] if self._api_key else []
