"""Reads the string of a JSON object with one member, such as `{"input": "a text"}`, as the object is generated."""

from __future__ import annotations

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", '"': '"', "\\": "\\", "/": "/"}
"""All escapes that there are: the grammars of JSON write every other character as itself."""

_QUOTES_BEFORE = 3
"""The quotes of the member's name, and the first of its string."""


class StringMember:
    """Decodes the string, independently of how the object is cut into pieces."""

    def __init__(self) -> None:
        self._num_quotes = 0
        self._is_escaped = False

    def decode(self, piece: str) -> str:
        """Return what one more piece of the object adds to the string."""
        return "".join(self._character(char) for char in piece)

    def _character(self, char: str) -> str:
        if self._is_escaped:
            self._is_escaped = False
            return _ESCAPES.get(char, char)
        if char == '"':
            self._num_quotes += 1
        elif self._num_quotes == _QUOTES_BEFORE:
            self._is_escaped = char == "\\"
            return "" if self._is_escaped else char
        return ""
