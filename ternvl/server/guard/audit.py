"""Writes a line into the log for each request of an administrator: who asked for what, and what came of it.

The lines are written at every `--log-level`. They never have a secret in them.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ternvl.server.guard.auth import ACCESS, CALLER
from ternvl.server.log.request_id import in_words

DETAILS = "ternvl.audit"
"""The key of an ASGI scope for what a request of an administrator concerns: names and paths by field."""

logger = logging.getLogger("ternvl.audit")
logger.setLevel(logging.INFO)


class Audited:
    """ASGI middleware that logs requests to the endpoints of administrators, also those that are refused."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and log it once it is answered."""
        if scope["type"] != "http" or scope.get(ACCESS) != "admin":
            return await self._app(scope, receive, send)
        status = 499

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        details: dict[str, Any] = scope.setdefault(DETAILS, {})
        try:
            await self._app(scope, receive, watched)
        finally:
            who = scope.get(CALLER, "nobody known")
            client = (scope.get("client") or ("?",))[0]
            shown = json.dumps(details, ensure_ascii=True)  # no name of a client can break the line
            result = "done" if status < 400 else "refused or failed"
            logger.info(
                "%s from %s: %s %s %s: %s, status %d%s",
                who, client, scope["method"], scope["path"], shown, result, status, in_words(),
            )  # fmt: skip
