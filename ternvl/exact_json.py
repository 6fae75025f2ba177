"""JSON whose numbers keep the digits with which they are written, beyond what a double holds."""

from __future__ import annotations

import json
import re
import secrets
from decimal import Decimal, InvalidOperation
from typing import Any

_FEW_DIGITS = 15
"""Every decimal with this many significant digits is the shortest text of some double."""


class RawFloat(float):
    """A number that no double equals: a float of the nearest value that keeps its text."""

    text: str
    """The number as it is written in JSON."""

    def __new__(cls, text: str) -> RawFloat:
        """Make a number from its text."""
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __getnewargs__(self) -> tuple[str]:  # type: ignore[override]
        return (self.text,)


def parse_float(text: str) -> float:
    """Return a float or, if its shortest text is another number, a RawFloat. For `json.loads`."""
    value = float(text)
    if len(text) <= _FEW_DIGITS and "e" not in text and "E" not in text:
        return value
    try:
        is_exact = Decimal(repr(value)) == Decimal(text)
    except InvalidOperation:  # an exponent that is out of range even for Decimal
        is_exact = False
    return value if is_exact else RawFloat(text)


def loads(text: str) -> Any:
    """Return the value of a JSON text. Numbers that no double equals are of the type RawFloat. Raises ValueError."""
    return json.loads(text, parse_float=parse_float)


def dumps(value: Any) -> str:
    """Return a value as JSON. A RawFloat and a Decimal keep their digits. Raises what `json.dumps` raises."""
    mark = secrets.token_hex(8)
    text = json.dumps(_marked(value, mark))
    return re.sub(f'"{mark}([^"]*)"', r"\1", text) if mark in text else text


def number_text(value: int | float) -> str:
    """Return a number as JSON."""
    return value.text if isinstance(value, RawFloat) else repr(value)


def _marked(value: Any, mark: str) -> Any:
    """Return a copy in which numbers that `json` would round are strings that begin with `mark`."""
    if isinstance(value, dict):
        return {key: _marked(item, mark) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_marked(item, mark) for item in value]
    if isinstance(value, RawFloat):
        return mark + value.text
    return f"{mark}{value}" if isinstance(value, Decimal) and value.is_finite() else value
