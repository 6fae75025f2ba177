"""Reads keys from TOML: the file of `--api-key-file`, or the variable `TERNVL_API_KEYS`.

    [[key]]
    name = "team-a"
    key = "..."                      # or sha256 = "...", the hexadecimal SHA-256 of the key
    roles = ["use"]                  # use, metrics, admin; by default use
    expires = 2027-01-31T00:00:00Z   # the key is refused from then on
    requests_per_minute = 60
    tokens_per_minute = 100_000      # of text, images and answers together
    adapters = ["french"]            # the adapters that it may use; by default all

No message has a secret in it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time
from typing import Any

from ternvl.errors import ConfigError
from ternvl.server.guard.keys import ROLES, Key, digest_of

MAX_BYTES = 1_000_000
"""The most bytes of a key file."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_SECRET = re.compile(r"[^\x00-\x20\x7f]([^\x00-\x1f\x7f]*[^\x00-\x20\x7f])?")


def parse(text: str, source: str) -> list[Key]:
    """Return the keys of a TOML text. Raises ConfigError, which names `source`, the key, the field and the rule."""
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source} is not TOML: {error}.") from None
    tables = document.pop("key", None)
    if document:
        raise ConfigError(f"{source} has {next(iter(document))[:40]!r}, but only tables [[key]] are known.")
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables) or not tables:
        raise ConfigError(f"{source} has no key; each key is a table [[key]] with name, and key or sha256.")
    return [_key(table, f"{source}, key {number}") for number, table in enumerate(tables, start=1)]


def _key(table: Mapping[str, Any], where: str) -> Key:
    name = table.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        rule = "1 to 64 letters, digits, dots, hyphens and underscores, the first a letter or digit"
        raise ConfigError(f"{where}: name must be {rule}.")
    where = f"{where} ({name})"
    known = {"name", "key", "sha256", *_FIELDS}
    if unknown := sorted(table.keys() - known):
        raise ConfigError(f"{where} has the unknown field {unknown[0][:40]!r}; known are {', '.join(sorted(known))}.")
    given = {field: read(table[field], f"{where}: {field}") for field, read in _FIELDS.items() if field in table}
    return Key(name, _digest(table, where), **given)


def _digest(table: Mapping[str, Any], where: str) -> bytes:
    secret, digest = table.get("key"), table.get("sha256")
    if (secret is None) == (digest is None):
        raise ConfigError(f"{where} needs either key or sha256.")
    if digest is not None:
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise ConfigError(f"{where}: sha256 must be the 64 hexadecimal digits of the key's SHA-256.")
        return bytes.fromhex(digest)
    if not isinstance(secret, str) or not _SECRET.fullmatch(secret):
        raise ConfigError(f"{where}: key must be a text without control characters, and without spaces at its ends.")
    return digest_of(secret.encode())


def _roles(value: Any, where: str) -> frozenset[str]:
    if not isinstance(value, list) or not value or not all(role in ROLES for role in value):
        raise ConfigError(f"{where} must be a list of {', '.join(ROLES)}, at least one of them.")
    return frozenset(value)


def _expires(value: Any, where: str) -> datetime:
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value
    if isinstance(value, date) and not isinstance(value, datetime):
        return datetime.combine(value, time(), UTC)
    raise ConfigError(f"{where} must be a date, or a time with its zone such as 2027-01-31T12:00:00Z, without quotes.")


def _limit(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{where} is {str(value)[:40]}, but must be a whole number of at least 1.")
    return value


def _adapters(value: Any, where: str) -> frozenset[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ConfigError(f"{where} must be a list of names of adapters; an empty list allows none.")
    return frozenset(value)


_FIELDS: dict[str, Callable[[Any, str], Any]] = {
    "roles": _roles,
    "expires": _expires,
    "requests_per_minute": _limit,
    "tokens_per_minute": _limit,
    "adapters": _adapters,
}
