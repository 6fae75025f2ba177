"""The keys of a server: their names, roles, limits and ends. Secrets are kept as hashes alone."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from ternvl.errors import ConfigError

ROLES = ("use", "metrics", "admin")
"""The roles of keys: asking the model, reading the metrics, and everything."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key."""

    name: str
    digest: bytes = field(repr=False)
    """The SHA-256 of the secret."""
    roles: frozenset[str] = frozenset({"use"})
    expires: datetime | None = None
    """The moment from which the key is refused."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """The most tokens of text, images and answers together."""
    adapters: frozenset[str] | None = None
    """The adapters that the key may use; None for all."""

    def has_role(self, role: str) -> bool:
        """Whether the key has a role. The role admin includes the others."""
        return role in self.roles or "admin" in self.roles

    @property
    def has_expired(self) -> bool:
        return self.expires is not None and datetime.now(UTC) >= self.expires

    @property
    def salt(self) -> str:
        """64 characters by which the cached work of this key is told from that of others."""
        return hashlib.sha256(b"ternvl key" + self.digest).hexdigest()


def digest_of(secret: bytes) -> bytes:
    """Return the hash by which a secret is kept. Keys are long random texts, so one round of SHA-256 is enough."""
    return hashlib.sha256(secret).digest()


class Keys:
    """All keys that are in force at one time."""

    def __init__(self, keys: Iterable[Key]) -> None:
        """Raises ConfigError if two keys have the same name or the same secret."""
        self.all = tuple(keys)
        by_name: dict[str, Key] = {}
        by_digest: dict[bytes, Key] = {}
        for key in self.all:
            if by_name.setdefault(key.name, key) is not key:
                raise ConfigError(f"Two keys have the name {key.name}, but each needs its own.")
            if (other := by_digest.setdefault(key.digest, key)) is not key:
                raise ConfigError(f"The keys {other.name} and {key.name} are the same; each must have its own secret.")

    def find(self, secret: bytes) -> Key | None:
        """Return the key with this secret, or None.

        Every key is compared, each in constant time, so that the time reveals neither how much of a guess was right nor
        which key was found.
        """
        given = digest_of(secret)
        found = [key for key in self.all if hmac.compare_digest(given, key.digest)]
        return found[0] if found else None

    @property
    def has_admin(self) -> bool:
        """Whether a key has the role admin."""
        return any("admin" in key.roles for key in self.all)
