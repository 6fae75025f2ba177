"""Typed access to one JSON object of a configuration. Errors name the object, the key and the value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ternvl.errors import CheckpointError

MOST = 2**24
"""The limit of a size: above that of any published model, and low enough to reject a typing error before memory runs
out."""
MOST_PIXELS = 2**14
MOST_LAYERS = 1_000


@dataclass(frozen=True, slots=True)
class Section:
    """One JSON object of a configuration. Each getter raises a CheckpointError that names the object, key and value."""

    name: str
    values: Mapping[str, Any]

    def section(self, key: str) -> Section:
        """Return the object under `key`."""
        value = self.values.get(key)
        if not isinstance(value, dict):
            raise CheckpointError(f"{self.name} needs an object under {key!r}, but has {value!r}.")
        return Section(f"{self.name}: {key}", value)

    def count(self, key: str, default: int | None = None, *, most: int = MOST) -> int:
        """Return a positive whole number of at most `most`."""
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise CheckpointError(f"{self.name}: {key} must be a positive whole number, but is {value!r}.")
        if value > most:
            raise CheckpointError(f"{self.name}: {key} must be at most {most}, but is {value}.")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a number that is not negative."""
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise CheckpointError(f"{self.name}: {key} must be a number that is not negative, but is {value!r}.")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        """Return true or false; null counts as absent."""
        value = self.values.get(key)
        if not isinstance(value, bool | None):
            raise CheckpointError(f"{self.name}: {key} must be true or false, but is {value!r}.")
        return default if value is None else value

    def side(self, key: str, default: int) -> int:
        """Return the side of a square in pixels, written as one number or as two equal numbers."""
        value = self.values.get(key, default)
        if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
            value = value[0]
        return Section(self.name, {key: value}).count(key, most=MOST_PIXELS)

    def only(self, key: str, allowed: tuple[Any, ...], default: Any) -> Any:
        """Return the value if it is one of `allowed`, the values that are implemented."""
        value = self.values.get(key, default)
        if value not in allowed:
            wanted = " or ".join(repr(item) for item in allowed)
            raise CheckpointError(f"{self.name}: {key} {value!r} is not implemented, only {wanted}.")
        return value
