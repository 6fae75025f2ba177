"""Adapters from a folder that all replicas share: a replica reads an adapter when a request first names it."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

from ternvl.cluster.exchange import Message
from ternvl.errors import AdapterError
from ternvl.server.adapters import AdapterService
from ternvl.server.errors import HTTPError, to_http
from ternvl.server.guard.caller import may_use

logger = logging.getLogger("ternvl.server")

ADAPTER = "ternvl.adapter"
"""The key of an ASGI scope for the name in a request that may be an adapter's."""

CHANGING_PATHS = frozenset(
    f"{prefix}/{verb}_lora_adapter" for prefix in ("", "/v1") for verb in ("load", "unload", "upload")
)
"""The endpoints that would change the adapters of one replica alone."""


def refusal() -> HTTPError:
    """Return the answer to a request that would change the adapters of one replica alone."""
    message = (
        "Several replicas take their adapters from the folder of --lora-dir; place the adapter's folder there, and "
        "requests can name it at once."
    )
    return HTTPError(501, message, code="adapters_are_shared")


class SharedAdapters:
    """ASGI middleware, behind the check of keys, that registers adapters of the folder before they are looked up.

    A list of the models registers all of them. A folder is read once: a new version of an adapter has a new name.
    """

    def __init__(self, app: Any, service: AdapterService, folder: Path) -> None:
        self._app, self._service, self._folder = app, service, folder
        self._registering = asyncio.Lock()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Register what the request may name, and pass it on; an adapter that cannot be used is the answer's error."""
        if scope["type"] == "http":
            try:
                for name in await self._wanted(scope):
                    await self._register(name)
            except AdapterError as error:
                return await to_http(error).response(scope)(scope, receive, send)
        await self._app(scope, receive, send)

    async def _wanted(self, scope: Message) -> list[str]:
        path, pool = scope["path"], self._service.pool
        if path == "/v1/models":
            found = await asyncio.to_thread(self._names)
            return [name for name in found if not pool.has(name)]
        name = path.removeprefix("/v1/models/") if path.startswith("/v1/models/") else scope.get(ADAPTER)
        if not name or pool.has(name) or not may_use(name):
            return []
        return [name] if name in await asyncio.to_thread(self._names) else []

    def _names(self) -> list[str]:
        return sorted(each.name for each in self._folder.iterdir() if not each.name.startswith(".") and each.is_dir())

    async def _register(self, name: str) -> None:
        async with self._registering:
            if not self._service.pool.has(name):
                await self._service.load(name, str(self._folder / name))
                logger.info("The adapter %s was found in %s.", name, self._folder)
