"""Ends an answer before the first stop string, however the text was cut into pieces."""

from __future__ import annotations

from collections.abc import Sequence

from ternvl.errors import RequestError


class _Matcher:
    """How much of one stop string the text ends in (Knuth, Morris, Pratt: linear in the text, whatever the string)."""

    def __init__(self, string: str) -> None:
        self.string = string
        self.size = 0
        """Length of the longest beginning of the string, short of all of it, that the text ends in."""
        self._shorter = [0, 0]
        for char in string[1:]:
            self._shorter.append(self._longer(self._shorter[-1], char))

    def follow(self, char: str) -> bool:
        """Whether the string ends with this next character of the text."""
        self.size = self._longer(self.size, char)
        whole = self.size == len(self.string)
        if whole:
            self.size = self._shorter[self.size]
        return whole

    def _longer(self, size: int, char: str) -> int:
        while size and self.string[size] != char:
            size = self._shorter[size]
        return size + (self.string[size] == char)


class StopStrings:
    """Passes text on up to the first stop string, and holds back what may be the beginning of one.

    The match that begins first wins. What it yields is the whole text up to that match, or with `include` to its end,
    wherever the pieces were cut.
    """

    def __init__(self, stop: Sequence[str], *, include: bool = False) -> None:
        """Raises RequestError where a stop string is empty."""
        for index, string in enumerate(stop):
            if not string:
                raise RequestError(
                    f"stop[{index}] is an empty string; a stop string needs a character.", param=f"stop[{index}]"
                )
        self.found: str | None = None
        """The stop string that was met: all that follows is dropped."""
        self._include = include
        self._matchers = [_Matcher(string) for string in stop]
        self._held = ""
        self._match: tuple[int, str] | None = None
        """Where in what is held the first whole stop string begins, and which it is."""

    @property
    def stopped(self) -> bool:
        """Whether a stop string was met."""
        return self.found is not None

    def decode(self, text: str) -> str:
        """What may be shown after one more piece of text."""
        if self.stopped:
            return ""
        for char in text:
            self._held += char
            self._follow(char)
        begun = len(self._held) - max((matcher.size for matcher in self._matchers), default=0)
        if self._match is not None and self._match[0] <= begun:
            return self.flush()
        shown, self._held = self._held[:begun], self._held[begun:]
        self._match = None if self._match is None else (self._match[0] - begun, self._match[1])
        return shown

    def flush(self) -> str:
        """What was held back, now that no more text comes."""
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
    """Length of the longest tail of `text` that begins `tag`, short of all of it."""
    return next(size for size in range(min(len(tag) - 1, len(text)), -1, -1) if text.endswith(tag[:size]))
