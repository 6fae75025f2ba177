"""Reads and writes tiles on a thread of its own, so that the engine's steps never wait long for a disk."""

from __future__ import annotations

import logging
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from threading import Condition, Thread

from ternvl.engine.tiles.store import TileStore
from ternvl.workers.threads import started

logger = logging.getLogger(__name__)

MOST_READ = 64
"""The most tiles that are read ahead of a step."""
_MOST_UNWRITTEN = 64
"""The most tiles that wait to be written. Further ones are not kept on disk, so that a slow disk takes no memory."""
_PATIENCE = 0.2
"""The most seconds that a step waits for tiles that it has asked for."""
_PATIENCE_AT_START = 5.0
"""The same while the folder is being opened and the model's identity computed."""
_SECONDS_TO_END = 5.0


class TileDisk:
    """A `TileStore` behind a thread. One thread calls its methods."""

    def __init__(self, open_store: Callable[[], TileStore]) -> None:
        """`open_store` runs on the new thread. Raises UnavailableError if the system refuses a thread."""
        self._state = _State(open_store)
        self._is_late = False
        self._thread = started(Thread(target=self._state.work, name="ternvl-tiles", daemon=True))
        self._end = weakref.finalize(self, _end, self._state, self._thread)

    @property
    def num_damaged(self) -> int:
        """The number of files that could not be used. Any thread may ask."""
        store = self._state.store
        return 0 if store is None else store.num_damaged

    def look_up(self, keys: Iterable[bytes]) -> Mapping[bytes, memoryview]:
        """Return the features of those of the first tiles that are on disk.

        Tiles that were not asked for before are waited for, but not long. The others are returned by a later call, if
        they are still wanted.
        """
        state, wanted = self._state, dict.fromkeys(islice(keys, MOST_READ))
        with state.changed:
            if not state.want(wanted) or self._is_late:
                self._is_late = self._is_late and state.is_reading
            else:
                self._is_late = not state.changed.wait_for(lambda: not state.is_reading, self._patience())
            return dict(state.found)

    def _patience(self) -> float:
        return _PATIENCE_AT_START if self._state.store is None else _PATIENCE

    def put(self, key: bytes, features: memoryview) -> None:
        """Keep the features of a tile, which must not change. It returns at once."""
        self._state.put(key, features)

    def flush(self, seconds: float = _SECONDS_TO_END) -> bool:
        """Wait until everything is written, and return whether it is."""
        return self._state.flush(seconds)

    def close(self) -> None:
        """Write what waits to be written, and end the thread; it waits for a slow disk for a few seconds only."""
        self._end()


class _State:
    """What both threads know."""

    def __init__(self, open_store: Callable[[], TileStore]) -> None:
        self.changed = Condition()
        self.store: TileStore | None = None
        self.found: dict[bytes, memoryview] = {}
        self._open: Callable[[], TileStore] | None = open_store
        self._missing: set[bytes] = set()
        self._reads: dict[bytes, None] = {}
        self._writes: deque[tuple[bytes, memoryview]] = deque()
        self._is_busy = self._is_closed = False

    @property
    def is_reading(self) -> bool:
        return bool(self._reads)

    def want(self, keys: Mapping[bytes, None]) -> bool:
        """Have tiles read, forget those that are no longer wanted, and return whether any is new."""
        self.found = {key: features for key, features in self.found.items() if key in keys}
        self._missing &= keys.keys()
        known = self.found.keys() | self._missing | self._reads.keys()
        new = dict.fromkeys(key for key in keys if key not in known)
        self._reads = {key: None for key in self._reads if key in keys} | ({} if self._is_closed else new)
        self.changed.notify_all()
        return bool(new)

    def put(self, key: bytes, features: memoryview) -> None:
        with self.changed:
            can_write = not self._is_closed and (self.store is None or self.store.writes)
            if can_write and len(self._writes) < _MOST_UNWRITTEN:
                self._writes.append((key, features))
                self.changed.notify_all()

    def flush(self, seconds: float) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: not self._writes and not self._is_busy, seconds)

    def close(self) -> None:
        with self.changed:
            self._is_closed, self._reads = True, {}
            self.changed.notify_all()

    def work(self) -> None:
        """Read and write until it is closed. A failure is logged; the engine then encodes all tiles itself."""
        try:
            assert self._open is not None
            store = self._open()
            self._open = None  # it may hold the model's weights
            with self.changed:
                self.store = store
            while self._work(store):
                pass
        except Exception:
            logger.exception("Image tiles are no longer read from disk and kept there.")
        with self.changed:
            self._is_closed = True
            self._reads, self._writes, self._is_busy = {}, deque(), False
            self.changed.notify_all()

    def _work(self, store: TileStore) -> bool:
        """Read or write one tile; return False at the end."""
        with self.changed:
            self.changed.wait_for(lambda: self._reads or self._writes or self._is_closed)
            key = next(iter(self._reads), None)
            if key is None and not self._writes:
                return False
            written = self._writes.popleft() if key is None else None
            self._is_busy = True
        features = None if key is None else store.read(key)
        if written is not None:
            store.write(*written)
        with self.changed:
            self._is_busy = False
            if key is not None:
                self._take(key, features)
            self.changed.notify_all()
        return True

    def _take(self, key: bytes, features: memoryview | None) -> None:
        if key not in self._reads:
            return  # it is no longer wanted
        del self._reads[key]
        if features is None:
            self._missing.add(key)
        else:
            self.found[key] = features


def _end(state: _State, thread: Thread) -> None:
    state.close()
    thread.join(_SECONDS_TO_END)
