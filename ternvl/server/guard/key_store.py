"""The keys of a server from all their sources, which may be read again while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ternvl.config import ServerConfig
from ternvl.errors import ConfigError
from ternvl.files import read_regular
from ternvl.server.guard.key_file import MAX_BYTES, parse
from ternvl.server.guard.keys import Key, Keys, digest_of


class KeyStore:
    """The keys in force. `--api-key` has the roles use and metrics, `--admin-key` has all."""

    def __init__(self, config: ServerConfig) -> None:
        """Raises ConfigError for a file or a variable that holds no valid keys."""
        self._config = config
        self._has_list = config.api_key_file is not None or config.api_keys is not None
        self.keys = self._read()

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that `reload` reads."""
        return () if self._config.api_key_file is None else (self._config.api_key_file,)

    @property
    def is_closed(self) -> bool:
        """Whether clients need a key."""
        return self._config.api_key is not None or self._has_list

    @property
    def guards_admin(self) -> bool:
        """Whether only keys with the role admin may load, unload and upload adapters."""
        return self._has_list or self.keys.has_admin

    def reload(self) -> str:
        """Read all keys again, and return what is in force now. Raises ConfigError, and then nothing has changed."""
        self.keys = self._read()
        return f"{len(self.keys.all)} keys are in force"

    def role_for(self, access: str) -> str | None:
        """Return the role that a key needs for an access of `Operation`; None if no key is needed."""
        if access == "open" or (access == "metrics" and self._config.metrics_access == "open"):
            return None
        if access == "admin" and self.guards_admin:
            return "admin"
        if not self.is_closed:
            return None
        return "metrics" if access == "metrics" else "use"

    def _read(self) -> Keys:
        return Keys(self._sources())

    def _sources(self) -> Iterator[Key]:
        config = self._config
        if config.api_key is not None:
            yield Key("api-key", digest_of(config.api_key.encode()), frozenset({"use", "metrics"}))
        if config.admin_key is not None:
            yield Key("admin-key", digest_of(config.admin_key.encode()), frozenset({"admin"}))
        if config.api_keys is not None:
            yield from parse(config.api_keys, "TERNVL_API_KEYS")
        if config.api_key_file is not None:
            yield from parse(_text_of(config.api_key_file), f"The key file {config.api_key_file}")


def _text_of(path: Path) -> str:
    try:
        return read_regular(path, limit=MAX_BYTES).decode("utf-8")
    except OSError as error:
        raise ConfigError(f"The key file {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"The key file {path} is not text in UTF-8.") from None
