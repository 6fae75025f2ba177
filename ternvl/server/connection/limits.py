"""How many connections there may be: in all, and of one client."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Protocol

from ternvl.config import ServerConfig
from ternvl.errors import ConfigError

_MOST = 65_536
"""Open files that the process asks for, at most."""
_RESERVED = 96
"""Open files that are not connections of clients: of the model, of its adapters, of downloads, of logs."""
_LEAST = 32
"""Connections below which a server makes no sense."""


def max_connections(config: ServerConfig) -> int:
    """Return how many connections there may be. The process first gets as many open files as the system allows.

    Raises ConfigError if the system allows too few open files.
    """
    allowed = _open_files() - _RESERVED - 2 * config.prompt_workers
    if allowed < _LEAST:
        raise ConfigError(
            f"The process may have {_open_files()} open files, which leaves {max(0, allowed)} connections, but a "
            f"server needs at least {_LEAST}: raise the limit (`ulimit -n`, or LimitNOFILE of systemd)."
        )
    if config.max_connections is None:
        return allowed
    if config.max_connections > allowed:
        raise ConfigError(
            f"max_connections is {config.max_connections}, but the process may have {_open_files()} open files, which "
            f"leaves {allowed} connections: raise the limit (`ulimit -n`, or LimitNOFILE of systemd)."
        )
    return config.max_connections


def _open_files() -> int:
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return _MOST
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(_MOST, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return _MOST if soft == resource.RLIM_INFINITY else soft


class Connected(Protocol):
    """A connection, as the limits see it."""

    address: str

    @property
    def is_idle(self) -> bool:
        """Whether it waits for a request, of which no byte has arrived."""

    def end(self) -> None:
        """Close it without an answer."""


class Connections:
    """The connections of a server, the oldest first."""

    def __init__(self, most: int, most_per_client: int | None) -> None:
        self._most, self._most_per_client = most, most_per_client
        self._open: dict[Connected, None] = {}
        self._of_client: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._open)

    def add(self, connection: Connected) -> str | None:
        """Count a connection, or return why it is refused. An idle one is closed if that makes room."""
        limit = self._most_per_client
        if limit is not None and self._of_client[connection.address] >= limit:
            if not self._make_room(lambda each: each.address == connection.address):
                return f"A client may have {limit} connections at the same time."
        elif len(self._open) >= self._most and not self._make_room(lambda each: True):
            return f"The server has {self._most} connections, which is its limit."
        self._open[connection] = None
        self._of_client[connection.address] += 1
        return None

    def remove(self, connection: Connected) -> None:
        """Stop counting a connection; one that was refused or is removed already changes nothing."""
        if connection in self._open:
            del self._open[connection]
            self._of_client[connection.address] -= 1
            if not self._of_client[connection.address]:
                del self._of_client[connection.address]

    def _make_room(self, fits: Callable[[Connected], bool]) -> bool:
        idle = next((each for each in self._open if each.is_idle and fits(each)), None)
        if idle is not None:
            self.remove(idle)
            idle.end()
        return idle is not None
