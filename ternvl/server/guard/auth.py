"""Checks the key of each request, and remembers whose it is.

A key is sent as a bearer token or, as Anthropic's clients do, in the header `x-api-key`.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ternvl.server.errors import HTTPError
from ternvl.server.guard.caller import Caller, address, current
from ternvl.server.guard.key_store import KeyStore
from ternvl.server.guard.keys import Key
from ternvl.server.guard.quota import Budget

ACCESS = "ternvl.access"
"""The key of an ASGI scope for the access to the endpoint: "open" for everyone, "admin", "metrics", or "key", the
default."""

CALLER = "ternvl.caller"
"""The key of an ASGI scope for the name of the request's key, once it was found."""


class BearerAuth:
    """ASGI middleware that answers 401 unless a request has a key with the role that its endpoint needs.

    A key with the role admin opens every endpoint.
    """

    def __init__(self, app: ASGIApp, store: KeyStore) -> None:
        self._app = app
        self._store = store
        self._budgets: dict[str, Budget] = {}  # by the names of keys, so that reading them again resets nothing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on requests that have a key with the role, or need none."""
        address.set((scope.get("client") or ("",))[0])
        role = self._store.role_for(scope.get(ACCESS, "key")) if scope["type"] == "http" else None
        if role is None:
            return await self._app(scope, receive, send)
        secret = _secret_of(Headers(scope=scope))
        key = self._store.keys.find(secret) if secret else None
        if key is not None:
            scope[CALLER] = key.name
        if key is None or key.has_expired or not key.has_role(role):
            return await self._refusal(key, role, secret).response(scope)(scope, receive, send)
        token = current.set(Caller(key, self._budget_of(key)))
        try:
            await self._app(scope, receive, send)
        finally:
            current.reset(token)

    def _refusal(self, key: Key | None, role: str, secret: bytes) -> HTTPError:
        kind = "admin" if role == "admin" else "API"
        if not secret:
            message = f"This endpoint needs the {kind} key; send it as `Authorization: Bearer KEY`."
        elif key is None:
            message = f"The {kind} key is wrong."
        elif key.has_expired:
            message = f"The key {key.name} has expired."
        else:
            message = f"The key {key.name} does not have the role {role}, which this endpoint needs."
        return HTTPError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def _budget_of(self, key: Key) -> Budget:
        if key.name not in self._budgets:
            names = {each.name for each in self._store.keys.all}
            self._budgets = {name: each for name, each in self._budgets.items() if name in names}
        return self._budgets.setdefault(key.name, Budget())


def _secret_of(headers: Headers) -> bytes:
    """Return the key of a request as the client sent it; empty if it has none."""
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    if not secret:
        scheme, secret = "bearer", headers.get("x-api-key", "")
    return secret.strip().encode("latin-1") if scheme.lower() == "bearer" else b""  # the bytes of the header
