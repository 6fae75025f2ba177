"""Arguments that are for all prompts of a call, or one for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from ternvl.errors import ConfigError, RequestError

_T = TypeVar("_T")


def list_of(kind: type[_T], given: _T | Sequence[_T], rule: str) -> list[_T]:
    """Return one value or several as a list. Raises RequestError, which begins with `rule`, for one of another type."""
    values: list[Any] = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    for value in values:
        if not isinstance(value, kind):
            raise RequestError(f"{rule}, not a value of type {type(value).__name__}.")
    return values


def one_each(given: Any, size: int, noun: str) -> list[Any]:
    """Return a list of `size` values: those of a list, or one value that is for all.

    Raises ConfigError if a list has another size; `noun` is what it calls the values.
    """
    values = list(given) if isinstance(given, list | tuple) else [given] * size
    if len(values) != size:
        raise ConfigError(f"There are {len(values)} {noun} for {size} prompts.")
    return values
