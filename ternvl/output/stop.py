"""Ends an answer before the first stop string, however the text was cut into pieces."""

from __future__ import annotations

from collections.abc import Sequence

from ternvl.errors import RequestError


class StopStrings:
    """Passes text on up to the first stop string, and holds back what may be the beginning of one.

    The match that begins first wins. What it yields is the whole text up to that match, wherever the pieces were cut.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        """Raises RequestError where a stop string is empty."""
        for index, string in enumerate(stop):
            if not string:
                raise RequestError(
                    f"stop[{index}] is an empty string; a stop string needs a character.", param=f"stop[{index}]"
                )
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False
        """Whether a stop string was met: all that follows is dropped."""

    def decode(self, text: str) -> str:
        """What may be shown after one more piece of text."""
        if self.stopped:
            return ""
        self._held += text
        match, begun = self._first_match(), self._first_beginning()
        if match < begun:
            return self._finish(match)
        shown, self._held = self._held[:begun], self._held[begun:]
        return shown

    def flush(self) -> str:
        """What was held back, now that no more text comes."""
        return self._finish(self._first_match())

    def _finish(self, match: int) -> str:
        self.stopped = self.stopped or match < len(self._held)
        shown, self._held = self._held[:match], ""
        return shown

    def _first_match(self) -> int:
        """Where the first whole stop string begins in what is held; its length where there is none."""
        found = (self._held.find(string) for string in self._stop)
        return min((index for index in found if index >= 0), default=len(self._held))

    def _first_beginning(self) -> int:
        """Where the longest tail that begins a stop string begins; the length of what is held where there is none."""
        lengths = (
            size
            for string in self._stop
            for size in range(1, min(len(string), len(self._held) + 1))
            if self._held.endswith(string[:size])
        )
        return len(self._held) - max(lengths, default=0)
