"""Reads files again while the server runs: when they change, and when it is told to (SIGHUP).

What cannot be used is refused in the log, and what was read before stays in force.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ternvl.errors import ConfigError

POLL_SECONDS = 1.0
"""How often files are looked at. A change is taken up once it has been the same for two looks."""

_Signature = tuple[tuple[int, ...] | None, ...]

logger = logging.getLogger("ternvl.server")


class Reloadable(Protocol):
    """Something that is read from files."""

    @property
    def paths(self) -> Sequence[Path]:
        """The files that it is read from."""

    def reload(self) -> str:
        """Read it again and return what is in force. Raises ConfigError, and then nothing has changed."""


@dataclass(slots=True)
class _Watched:
    what: Reloadable
    taken: _Signature | None = None
    """The state of the files that were read last; None before the first look, which reads them again in any case."""
    seen: _Signature | None = None

    def look(self, *, anew: bool) -> None:
        """Read the files if they have changed, or in any case if `anew` is true."""
        found = tuple(_signature(path) for path in self.what.paths)
        is_stable, self.seen = found == self.seen, found
        if anew or (is_stable and found != self.taken):
            self.taken = found
            self._reload()

    def _reload(self) -> None:
        names = ", ".join(map(str, self.what.paths))
        try:
            logger.info("%s was read: %s.", names, self.what.reload())
        except ConfigError as error:
            logger.error("%s What was read before stays in force.", error)


class Reloader:
    """Watches the files of a server."""

    def __init__(self) -> None:
        self._watched: list[_Watched] = []
        self._wanted = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def has_files(self) -> bool:
        """Whether there is something to read again."""
        return bool(self._watched)

    def add(self, what: Reloadable) -> None:
        """Watch the files of `what`, if it has any."""
        if what.paths:
            self._watched.append(_Watched(what))

    def start(self) -> None:
        """Begin to watch, on the running event loop."""
        if self._watched:
            self._loop = asyncio.get_running_loop()
            self._task = self._loop.create_task(self._watch())

    def close(self) -> None:
        """Watch no longer."""
        if self._task is not None:
            self._task.cancel()

    def request(self) -> None:
        """Have all files read again soon. A signal handler may call this."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._wanted.set)

    async def _watch(self) -> None:
        anew = False
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), POLL_SECONDS)
            anew = anew or self._wanted.is_set()
            self._wanted.clear()
            try:
                await asyncio.to_thread(self._look, anew=anew)
                anew = False
            except RuntimeError as error:  # no thread can be started
                logger.warning("Files cannot be read again now: %s.", error)

    def _look(self, *, anew: bool) -> None:
        for watched in self._watched:
            try:
                watched.look(anew=anew)
            except Exception:
                logger.exception("%s could not be read again.", ", ".join(map(str, watched.what.paths)))


def _signature(path: Path) -> tuple[int, ...] | None:
    """Return what changes whenever a file is written or replaced; None if there is no such file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
