"""The adapters that can be chosen by name: which folders they come from, which are in memory, who uses them.

At most `max_loras` are in memory. The one longest unused makes room, and is read again from its folder when it is
wanted; one in use stays. Nothing here touches the model: files are read and packed by whoever asks, on any thread, and
the engine gets an adapter with the request that wants it.
"""

from __future__ import annotations

import asyncio
import re
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
from ternvl.errors import AdapterError, OverloadedError, UnavailableError, UnknownAdapterError
from ternvl.lora.bank import Adapter
from ternvl.lora.files import linears, read

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(eq=False)
class Entry:
    """A name and what it stands for. A new adapter under the same name is a new entry."""

    name: str
    folder: Path
    created: int = field(default_factory=lambda: int(time.time()))
    num_users: int = 0
    is_retired: bool = False
    """Whether its name is gone or another's: who uses it goes on, nobody comes anew."""
    is_given_up: bool = False
    """Whether its users are not to go on either."""
    adapter: Adapter | None = None
    """None while it is not in memory."""
    loading: threading.Lock = field(default_factory=threading.Lock)


class AdapterPool:
    """All adapters of one model. Its methods may be called from any thread; those that read files say so."""

    def __init__(self, config: ModelConfig, engine: EngineConfig, *, base: str, device: torch.device) -> None:
        """`base` is what the model is called, by which adapters of other models are known."""
        self._config = config
        self._engine = engine
        self._base = base
        self._device = device
        self._entries: dict[str, Entry] = {}
        self._resident: dict[Entry, None] = {}  # in order of last use; with those retired that are still used
        self._lock = threading.Lock()

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, int]]:
        return linears(self._config)  # takes a moment, which who needs no adapter need not pay

    @cached_property
    def _readers(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, thread_name_prefix="adapters")

    @property
    def entries(self) -> list[Entry]:
        """What can be chosen, by name."""
        with self._lock:
            return sorted(self._entries.values(), key=lambda entry: entry.name)

    @property
    def num_resident(self) -> int:
        """Adapters in memory."""
        return len(self._resident)

    def known(self, name: str) -> Entry:
        """What a name stands for now. Raises UnknownAdapterError."""
        with self._lock:
            return self._known(name)

    def has(self, name: str) -> bool:
        """Whether a name stands for an adapter now."""
        return name in self._entries

    def read(self, name: str, folder: Path) -> Adapter:
        """The adapter in a folder, checked and packed; nothing else changes. Reads files; raises AdapterError."""
        engine = self._engine
        return read(
            folder,
            check_name(name),
            self._shapes,
            base=self._base,
            max_rank=engine.max_lora_rank,
            dtype=engine.lora_dtype,
            device=self._device,
        )

    def load(self, name: str, folder: Path) -> Entry:
        """Let an adapter be chosen by `name`, in place of what had it before. Reads files; raises AdapterError."""
        return self.register(self.read(name, folder), folder)

    def register(self, adapter: Adapter, folder: Path) -> Entry:
        """`load` for an adapter that was read already from a folder that holds it for good."""
        entry = Entry(adapter.name, folder)
        with self._lock:
            before = self._entries.get(adapter.name)
            if before is not None:
                self._retire(before)
            self._entries[adapter.name] = entry
            if self._has_room():  # else it is read again when it is wanted
                entry.adapter = adapter
                self._resident[entry] = None
        return entry

    def unload(self, name: str, *, give_up: bool = False) -> Entry:
        """Take a name away. Who uses the adapter goes on, unless `give_up` tells them not to; the entry's `num_users`
        falls to 0. Raises UnknownAdapterError."""
        with self._lock:
            entry = self._known(name)
            entry.is_given_up = give_up
            del self._entries[name]
            self._retire(entry)
        return entry

    def acquire_resident(self, name: str) -> Entry | None:
        """`acquire` where that reads nothing, else None. Raises UnknownAdapterError."""
        with self._lock:
            entry = self._known(name)
            if entry.adapter is None:
                return None
            entry.num_users += 1
            return entry

    def acquire(self, name: str) -> Entry:
        """An entry whose adapter is in memory, and stays there until `release`. Reads files where it must.

        Raises UnknownAdapterError, OverloadedError where all that may be in memory are in use, AdapterError where its
        folder does not hold it any more.
        """
        with self._lock:
            entry = self._known(name)
            entry.num_users += 1
        try:
            with entry.loading:
                if entry.adapter is None:
                    self._bring(entry)
        except BaseException as error:
            self.release(entry)
            if isinstance(error, AdapterError) and entry.is_retired:  # its folder went with its name
                return self.acquire(name)
            raise
        return entry

    def release(self, entry: Entry) -> None:
        """The counterpart of `acquire`."""
        with self._lock:
            entry.num_users -= 1
            if entry.is_retired and not entry.num_users:
                self._resident.pop(entry, None)
                entry.adapter = None
            elif entry in self._resident:
                self._resident[entry] = self._resident.pop(entry)  # to the end: used last

    @contextmanager
    def use(self, name: str) -> Iterator[Adapter]:
        """`acquire` and `release`."""
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

    async def _acquire_in(self, executor: Executor, name: str) -> Entry:
        future = executor.submit(self.acquire, name)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if not future.cancelled():  # A read that has started runs to its end and acquires the entry.
                future.add_done_callback(self._release_result)
            raise

    def _release_result(self, future: Future[Entry]) -> None:
        if not future.cancelled() and future.exception() is None:
            self.release(future.result())

    def _known(self, name: str) -> Entry:
        entry = self._entries.get(name)
        if entry is None:
            known = ", ".join(sorted(self._entries)[:10]) or "there is none"
            raise UnknownAdapterError(f"The adapter {name[:100]!r} is not loaded; loaded: {known}.", param="lora")
        return entry

    def _bring(self, entry: Entry) -> None:
        with self._lock:
            if not self._has_room():
                limit = self._engine.max_loras
                message = f"All {limit} LoRA adapters that may be in memory are in use (--max-loras)."
                raise OverloadedError(message)
            self._resident[entry] = None
        try:
            entry.adapter = self.read(entry.name, entry.folder)
        except BaseException:
            with self._lock:
                del self._resident[entry]
            raise

    def _has_room(self) -> bool:
        """Whether one more may be in memory, once the one longest unused has gone."""
        if len(self._resident) < self._engine.max_loras:
            return True
        unused = next((entry for entry in self._resident if not entry.num_users), None)
        if unused is None:
            return False
        del self._resident[unused]
        unused.adapter = None
        return True

    def _retire(self, entry: Entry) -> None:
        entry.is_retired = True
        if not entry.num_users:
            self._resident.pop(entry, None)
            entry.adapter = None


def check_name(name: str) -> str:
    """The name. Raises AdapterError for one that no adapter may have."""
    if not _NAME.fullmatch(name):
        rule = "it must be 1 to 128 letters, digits, dots, hyphens and underscores, and begin with a letter or digit"
        raise AdapterError(f"The adapter's name is {name[:200]!r}; {rule}.", param="lora_name")
    return name
