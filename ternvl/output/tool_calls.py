"""Finds tool calls in an answer: `<tool_call>`, a JSON object with name and arguments, `</tool_call>` (as Qwen2.5)."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto

from ternvl.output.stop import overlap
from ternvl.tool_form import START, TAIL, head


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of the call number `index` (from 0). The first has `id` and `name`; the others extend `arguments`."""

    index: int
    id: str | None
    name: str | None
    arguments: str


ParsedDelta = TextDelta | ToolCallDelta


class _CallState(Enum):
    TEXT = auto()
    ARGUMENTS = auto()
    TAIL = auto()


class ToolCallParser:
    """Splits an answer into text and tool calls, independently of how the answer is cut into pieces.

    It reads answers drawn under the grammar of the same tools (`ternvl.sampling.tools`), which fixes everything after
    a call's name. So a call is returned as soon as its arguments begin, and the arguments are passed on piece by
    piece. A start tag that no known call follows is text. White space after a call is dropped.
    """

    def __init__(self, names: Iterable[str]) -> None:
        """`names` are the names of the functions that may be called."""
        self.num_calls = 0
        """Number of calls found so far."""
        self._heads = {head(name) + "{": name for name in names}
        self._state = _CallState.TEXT
        self._held = ""
        self._skip_space = False
        self._arguments = _ObjectEnd()

    @property
    def is_cut(self) -> bool:
        """Whether the arguments of the last call are still incomplete."""
        return self._state is _CallState.ARGUMENTS

    def decode(self, text: str) -> list[ParsedDelta]:
        """Return the deltas that are certain after one more piece of text."""
        self._held += text
        return list(self._advance(final=False))

    def flush(self) -> list[ParsedDelta]:
        """Return the deltas that were held back. Call it once, after the last piece."""
        return list(self._advance(final=True))

    def _advance(self, *, final: bool) -> Iterator[ParsedDelta]:
        previous = None
        while self._held and previous != (self._held, self._state):
            previous = self._held, self._state
            match self._state:
                case _CallState.TEXT:
                    yield from self._read_text(final)
                case _CallState.ARGUMENTS:
                    yield self._read_arguments()
                case _CallState.TAIL:
                    self._drop_tail(final)

    def _read_text(self, final: bool) -> Iterator[ParsedDelta]:
        """Yield the text before the next start tag, or before what may become one."""
        if self._skip_space:
            self._held = self._held.lstrip()
            self._skip_space = not self._held
        stop = self._held.find(START)
        if stop < 0:
            stop = len(self._held) - (0 if final else overlap(self._held, START))
        if stop:
            yield TextDelta(self._held[:stop])
            self._held = self._held[stop:]
        elif self._held:
            yield from self._read_start(final)

    def _read_start(self, final: bool) -> Iterator[ParsedDelta]:
        """Yield a call if the start tag begins one of a known function, else the tag as text."""
        found = next((each for each in self._heads if self._held.startswith(each)), None)
        if found:
            yield ToolCallDelta(self.num_calls, f"call_{secrets.token_hex(12)}", self._heads[found], "")
            self.num_calls += 1
            self._state, self._arguments = _CallState.ARGUMENTS, _ObjectEnd()
            self._held = self._held[len(found) - 1 :]
        elif final or not any(each.startswith(self._held) for each in self._heads):
            yield TextDelta(START)
            self._held = self._held[len(START) :]

    def _read_arguments(self) -> ToolCallDelta:
        """Return the arguments up to their end, or all that is held if they continue."""
        stop = self._arguments.find(self._held)
        if stop is None:
            stop = len(self._held)
        else:
            self._state = _CallState.TAIL
        piece, self._held = self._held[:stop], self._held[stop:]
        return ToolCallDelta(self.num_calls - 1, None, None, piece)

    def _drop_tail(self, final: bool) -> None:
        """Drop the end tag once it is complete, or incomplete at the end of the answer."""
        if self._held.startswith(TAIL) or not TAIL.startswith(self._held):
            self._held = self._held.removeprefix(TAIL)
            self._state, self._skip_space = _CallState.TEXT, True
        elif final:
            self._held = ""


class _ObjectEnd:
    """Finds the end of a JSON object given in pieces, by counting braces outside of strings."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._is_escaped = False

    def find(self, piece: str) -> int | None:
        """Return the index just past the object in its next piece, or None if the object continues after it."""
        for index, char in enumerate(piece):
            if self._in_string:
                self._in_string = self._is_escaped or char != '"'
                self._is_escaped = char == "\\" and not self._is_escaped
                continue
            self._in_string = char == '"'
            self._depth += (char == "{") - (char == "}")
            if not self._depth:
                return index + 1
        return None
