"""The adapters that requests can choose by name: their folders, which are in memory, and how many users each has.

At most `max_loras` are in memory. The least recently used one without users is evicted, and read again from its folder
when a request chooses it. The pool does not change the model: the calling thread reads and packs files, and the engine
receives an adapter with the request that chose it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from ternvl.config import EngineConfig, ModelConfig
from ternvl.embedded import adapter_folder
from ternvl.errors import AdapterError, OverloadedError, UnavailableError, UnknownAdapterError
from ternvl.lora.adapter import Adapter
from ternvl.lora.files import linears, read
from ternvl.lora.locked import LockedAdapters
from ternvl.lora.settings import check_name


@dataclass(eq=False)
class RegisteredAdapter:
    """A name with the adapter that it stands for. A new adapter under the same name is a new entry."""

    name: str
    folder: Path
    digest: bytes
    """`Adapter.digest` of the files when they were loaded."""
    created: int = field(default_factory=lambda: int(time.time()))
    num_users: int = 0
    is_retired: bool = False
    """Whether the name is removed or stands for another adapter: current users continue, and there are no new users."""
    is_given_up: bool = False
    """Whether its current users end as well."""
    adapter: Adapter | None = None
    """None while the adapter is not in memory."""
    loading: threading.Lock = field(default_factory=threading.Lock)


class AdapterPool:
    """All adapters of one model. Methods may be called from any thread; those that read files say so."""

    def __init__(self, config: ModelConfig, engine: EngineConfig, *, base: str, device: torch.device) -> None:
        """`base` is the name of the model, by which adapters of other models are recognised."""
        self._config, self._engine, self._base, self._device = config, engine, base, device
        self._entries: dict[str, RegisteredAdapter] = {}
        self._resident: dict[RegisteredAdapter, None] = {}  # in order of last use, including retired entries with users
        self._lock = threading.Lock()
        self.locked: LockedAdapters | None = None
        """The adapters that a lock file allows; None without one."""

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, int]]:
        return linears(self._config)  # takes a moment, so it is computed only if adapters are used

    @cached_property
    def _readers(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, thread_name_prefix="adapters")

    @property
    def entries(self) -> list[RegisteredAdapter]:
        """The entries that can be chosen, sorted by name."""
        with self._lock:
            return sorted(self._entries.values(), key=lambda entry: entry.name)

    @property
    def num_resident(self) -> int:
        """The number of adapters in memory."""
        return len(self._resident)

    def known(self, name: str) -> RegisteredAdapter:
        """Return the entry of a name. Raises UnknownAdapterError."""
        with self._lock:
            return self._known(name)

    def has(self, name: str) -> bool:
        """Whether a name stands for an adapter."""
        return name in self._entries

    def read(self, name: str, folder: Path) -> Adapter:
        """Read, check and pack the adapter in a folder, or an embedded one. Reads files. Raises AdapterError."""
        adapter = read(
            adapter_folder(folder),
            check_name(name),
            self._shapes,
            base=self._base,
            max_rank=self._engine.max_lora_rank,
            dtype=self._engine.lora_dtype,
            device=self._device,
        )
        if self.locked is not None:
            self.locked.check(adapter)
        return adapter

    def load(self, name: str, folder: Path) -> RegisteredAdapter:
        """Read an adapter and register it under `name`, replacing an earlier one. Reads files. Raises AdapterError."""
        return self.register(self.read(name, folder), folder)

    def register(self, adapter: Adapter, folder: Path) -> RegisteredAdapter:
        """Register an adapter that was read from `folder`. An entry for the same files in this folder stays."""
        entry = RegisteredAdapter(adapter.name, folder, adapter.digest)
        with self._lock:
            before = self._entries.get(adapter.name)
            if before is not None and (before.folder, before.digest) == (folder, adapter.digest):
                return before
            if before is not None:
                self._retire(before)
            self._entries[adapter.name] = entry
            if self._has_room():  # else it is read again when a request chooses it
                entry.adapter = adapter
                self._resident[entry] = None
        return entry

    def unload(self, name: str, *, give_up: bool = False) -> RegisteredAdapter:
        """Remove a name and return its entry, whose `num_users` falls to 0 as its users end.

        Current users continue, unless `give_up` is true. Raises UnknownAdapterError.
        """
        with self._lock:
            entry = self._known(name)
            entry.is_given_up = give_up
            del self._entries[name]
            self._retire(entry)
        return entry

    def acquire_resident(self, name: str) -> RegisteredAdapter | None:
        """Acquire an adapter that is in memory; return None if it is not. Raises UnknownAdapterError."""
        with self._lock:
            entry = self._known(name)
            if entry.adapter is None:
                return None
            entry.num_users += 1
            return entry

    def acquire(self, name: str) -> RegisteredAdapter:
        """Return an entry whose adapter is in memory and stays there until `release`. Reads files if necessary.

        Raises UnknownAdapterError, OverloadedError if `max_loras` adapters are in use, and AdapterError if the folder
        no longer holds a valid adapter.
        """
        with self._lock:
            entry = self._known(name)
            entry.num_users += 1
        try:
            with entry.loading:
                if entry.adapter is None:
                    self._read_into_memory(entry)
        except BaseException as error:
            self.release(entry)
            if isinstance(error, AdapterError) and entry.is_retired:  # its folder was replaced along with its name
                return self.acquire(name)
            raise
        return entry

    def release(self, entry: RegisteredAdapter) -> None:
        """Release an entry that `acquire` or `acquire_resident` returned."""
        with self._lock:
            entry.num_users -= 1
            if entry.is_retired and not entry.num_users:
                self._resident.pop(entry, None)
                entry.adapter = None
            elif entry in self._resident:
                self._resident[entry] = self._resident.pop(entry)  # moved to the end, as the most recently used

    @contextmanager
    def use(self, name: str) -> Iterator[Adapter]:
        """Keep an adapter in memory while the context is open, and yield it. Reads files and raises as `acquire`."""
        entry = self.acquire(name)
        try:
            assert entry.adapter is not None
            yield entry.adapter
        finally:
            self.release(entry)

    @asynccontextmanager
    async def lease(self, name: str | None, executor: Executor | None = None) -> AsyncIterator[Adapter | None]:
        """Keep an adapter in memory while the context is open, and yield it; None yields None.

        Files are read in `executor`, by default in a thread of the pool's own, so the event loop never waits for them.
        Raises what `acquire` raises, and UnavailableError if the adapter was unloaded with `give_up` in the meantime.
        """
        if name is None:
            yield None
            return
        entry = self.acquire_resident(name) or await self._acquire_in(executor or self._readers, name)
        try:
            if entry.is_given_up:
                raise UnavailableError(f"The adapter {name} was unloaded, and this request was given up.")
            yield entry.adapter
        finally:
            self.release(entry)

    async def _acquire_in(self, executor: Executor, name: str) -> RegisteredAdapter:
        future = executor.submit(self.acquire, name)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if not future.cancelled():  # A read that has started runs to its end and acquires the entry.
                future.add_done_callback(self._release_result)
            raise

    def _release_result(self, future: Future[RegisteredAdapter]) -> None:
        if not future.cancelled() and future.exception() is None:
            self.release(future.result())

    def _known(self, name: str) -> RegisteredAdapter:
        entry = self._entries.get(name)
        if entry is None:
            known = ", ".join(sorted(self._entries)[:10]) or "there is none"
            raise UnknownAdapterError(f"The adapter {name[:100]!r} is not loaded; loaded: {known}.", param="lora")
        return entry

    def _read_into_memory(self, entry: RegisteredAdapter) -> None:
        with self._lock:
            if not self._has_room():
                limit = self._engine.max_loras
                raise OverloadedError(f"All {limit} LoRA adapters that may be in memory (--max-loras) are in use.")
            self._resident[entry] = None
        try:
            entry.adapter = self.read(entry.name, entry.folder)
        except BaseException:
            with self._lock:
                del self._resident[entry]
            raise

    def _has_room(self) -> bool:
        """Whether there is room for one more adapter in memory; evicts the least recently used one if necessary."""
        if len(self._resident) < self._engine.max_loras:
            return True
        unused = next((entry for entry in self._resident if not entry.num_users), None)
        if unused is not None:
            del self._resident[unused]
            unused.adapter = None
        return unused is not None

    def _retire(self, entry: RegisteredAdapter) -> None:
        entry.is_retired = True
        if not entry.num_users:
            self._resident.pop(entry, None)
            entry.adapter = None
