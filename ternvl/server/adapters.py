"""The adapters of a server, which are loaded, uploaded and unloaded while it runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

from ternvl.config import ServerConfig
from ternvl.engine.service import Service
from ternvl.errors import AdapterError, ConfigError, OverloadedError, UnavailableError
from ternvl.lora.adapter import Adapter
from ternvl.lora.pool import AdapterPool, RegisteredAdapter
from ternvl.lora.store import AdapterStore
from ternvl.server.guard.folders import AdapterFolders
from ternvl.workers.threads import LastingThreads

T = TypeVar("T")

logger = logging.getLogger("ternvl.server")

_LOADERS = 2
"""The most adapters that are read at the same time."""

_POLL_SECONDS = 0.02


class AdapterService:
    """The operations of the endpoints on adapters. Files are read on threads of their own."""

    def __init__(self, pool: AdapterPool, service: Service, config: ServerConfig, model_names: Collection[str]) -> None:
        """Read the adapters that `config` names. No adapter may have one of `model_names`, the model's own names.

        Raises ConfigError if `lora_dir` is not a folder, AdapterError if an adapter of `--lora` cannot be used, and
        LockError if an adapter of the lock is not loaded. An invalid adapter in `lora_dir` is logged and left out.
        """
        self.pool = pool
        self._service = service
        self._model_names = frozenset(model_names)
        self._folders = AdapterFolders(config)
        self._store = AdapterStore(config.lora_dir) if config.lora_dir else None
        self._loaders = LastingThreads(_LOADERS, "adapters")
        self._load_configured(config)

    def _load_configured(self, config: ServerConfig) -> None:
        if self._store is not None:
            self._store.remove_stale()
            for name, folder in self._store.folders().items():
                try:
                    self._load(name, folder)
                except AdapterError as error:
                    logger.warning("An adapter in %s is left out: %s", self._store.root, error)
        for given in config.lora:
            name, _, path = given.partition("=")
            self._load(name, Path(path or name).expanduser())
        if self.pool.locked is not None:
            self.pool.locked.check_complete({entry.name for entry in self.pool.entries})

    def close(self) -> None:
        """Stop the threads. Loads that have not begun are cancelled."""
        self._loaders.shutdown(wait=False, cancel_futures=True)

    @asynccontextmanager
    async def lease(self, name: str | None) -> AsyncIterator[Adapter | None]:
        """Keep the adapter in memory while the context is open. Its value is the adapter, or None without a name.

        Entering it raises the errors of `AdapterPool.acquire`, and UnavailableError if the adapter was unloaded and
        its requests were aborted.
        """
        try:
            async with self.pool.lease(name, self._loaders) as adapter:
                yield adapter
        except OverloadedError as error:
            error.retry_after = error.retry_after or self._service.retry_after(1)
            raise

    async def load(self, name: str, path: str) -> RegisteredAdapter:
        """Load an adapter from a folder. Running answers continue meanwhile.

        Raises AdapterError, and HTTPError 403 for a folder from which adapters may not be loaded.
        """
        return await self._in_thread(lambda: self._load(name, self._folders.check(path)))

    async def upload(self, name: str, config: BinaryIO, weights: BinaryIO) -> RegisteredAdapter:
        """Store the files of an adapter in `lora_dir`, and load it.

        Raises AdapterError if it cannot be used, ConfigError if `lora_dir` is not set.
        """
        return await self._in_thread(partial(self._upload, name, config, weights))

    async def unload(self, name: str, *, give_up: bool) -> int:
        """Unload an adapter, wait until no request uses it, and return the number of requests that used it.

        With `give_up` these requests end with UnavailableError at once; otherwise they run to their end. Raises
        UnknownAdapterError.
        """
        entry = self.pool.unload(name, give_up=give_up)
        num_users, adapter = entry.num_users, entry.adapter
        if give_up and adapter is not None:
            self._service.abort_if(lambda request: request.adapter is adapter, _gone(name))
        while entry.num_users:
            await asyncio.sleep(_POLL_SECONDS)
        return num_users

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._loaders, work)

    def _load(self, name: str, folder: Path) -> RegisteredAdapter:
        self._check_name(name)
        return self.pool.load(name, folder)

    def _upload(self, name: str, config: BinaryIO, weights: BinaryIO) -> RegisteredAdapter:
        if self._store is None:
            raise ConfigError("lora_dir is not set, so uploads cannot be stored.")
        self._check_name(name)
        with self._store.incoming(config, weights) as incoming:
            adapter = self.pool.read(name, incoming)
            before = self.pool.known(name).folder if self.pool.has(name) else None
            folder = self._store.commit(incoming, name)
        entry = self.pool.register(adapter, folder)
        if before is not None:
            self._store.discard(before)
        return entry

    def _check_name(self, name: str) -> None:
        if name in self._model_names:
            raise AdapterError(
                f"{name} is a name of the model itself; an adapter must have another name.", param="lora_name"
            )


def _gone(name: str) -> UnavailableError:
    return UnavailableError(f"The adapter {name} was unloaded, and this request was given up.")
