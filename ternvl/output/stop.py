"""Cuts an answer at its first stop string, independently of how the text is cut into pieces."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from ternvl.errors import RequestError


@lru_cache(maxsize=128)
def _borders(string: str) -> list[int]:
    """By length of a matched prefix, its longest proper border. The choices of a request share them."""
    borders = [0, 0]
    for char in string[1:]:
        borders.append(_longer(string, borders, borders[-1], char))
    return borders


def _longer(string: str, borders: Sequence[int], size: int, char: str) -> int:
    while size and string[size] != char:
        size = borders[size]
    return size + (string[size] == char)


class _Matcher:
    """Tracks how much of one stop string the text ends with (Knuth-Morris-Pratt, so time is linear in the text)."""

    def __init__(self, string: str) -> None:
        self.string = string
        self.size = 0
        """Length of the longest proper prefix of the string that the text ends with."""
        self._shorter = _borders(string)

    def follow(self, char: str) -> bool:
        """Take the next character of the text; return whether the stop string is now complete."""
        self.size = self._longer(self.size, char)
        is_complete = self.size == len(self.string)
        if is_complete:
            self.size = self._shorter[self.size]
        return is_complete

    def _longer(self, size: int, char: str) -> int:
        return _longer(self.string, self._shorter, size, char)


class StopStrings:
    """Passes text on up to the first stop string, and holds back text that may be the beginning of one.

    Among several matches, the one that begins first counts. The pieces it returns, joined, are the text before that
    match, or with `include` the text up to the end of the match.
    """

    def __init__(self, stop: Sequence[str], *, include: bool = False) -> None:
        """Raises RequestError if a stop string is empty."""
        for index, string in enumerate(stop):
            if not string:
                raise RequestError(
                    f"stop[{index}] is an empty string, but a stop string needs at least one character.",
                    param=f"stop[{index}]",
                )
        self.found: str | None = None
        """The stop string that ended the answer, or None. The text after it is dropped."""
        self._include = include
        self._matchers = [_Matcher(string) for string in stop]
        self._held = ""
        self._match: tuple[int, str] | None = None
        """Start in the held text, and the string, of the earliest complete stop string."""

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return self.found is not None

    def decode(self, text: str) -> str:
        """Return the text that may be shown after one more piece of text."""
        if self.stopped:
            return ""
        for char in text:
            self._held += char
            self._follow(char)
        safe = len(self._held) - max((matcher.size for matcher in self._matchers), default=0)
        if self._match is not None and self._match[0] <= safe:
            return self.flush()
        shown, self._held = self._held[:safe], self._held[safe:]
        self._match = None if self._match is None else (self._match[0] - safe, self._match[1])
        return shown

    def flush(self) -> str:
        """Return the text that was held back. Call it once, after the last piece."""
        shown = self._held
        if self._match is not None:
            start, self.found = self._match
            shown = shown[:start] + (self.found if self._include else "")
        self._held, self._match = "", None
        return shown

    def _follow(self, char: str) -> None:
        for matcher in self._matchers:
            if matcher.follow(char):
                start = len(self._held) - len(matcher.string)
                if self._match is None or start < self._match[0]:
                    self._match = start, matcher.string


def overlap(text: str, tag: str) -> int:
    """Return the length of the longest suffix of `text` that is a proper prefix of `tag`."""
    return next(size for size in range(min(len(tag) - 1, len(text)), -1, -1) if text.endswith(tag[:size]))
