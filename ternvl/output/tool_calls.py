"""Tool calls in an answer: `<tool_call>`, a JSON object with a name and arguments, `</tool_call>` (Qwen2.5's form)."""

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
    """A piece of the call number `index`. The first has `id` and `name`; the later ones pieces of `arguments`."""

    index: int
    id: str | None
    name: str | None
    arguments: str


Delta = TextDelta | ToolCallDelta


class _State(Enum):
    TEXT = auto()
    ARGUMENTS = auto()
    TAIL = auto()


class ToolCallParser:
    """Splits an answer's text into text and tool calls, whatever the pieces in which it comes.

    It reads what is drawn under the grammar of the same tools (`ternvl.sampling.tools`), where all that follows a
    call's name is certain. So a call is told as soon as its arguments begin, and they are passed on as they come. What
    looks like a call and begins in another way is text. White space behind a call is dropped.
    """

    def __init__(self, names: Iterable[str]) -> None:
        """`names` are those of the functions that may be called."""
        self.num_calls = 0
        """Calls found so far."""
        self._heads = {head(name) + "{": name for name in names}
        self._state = _State.TEXT
        self._held = ""
        self._skip_space = False
        self._arguments = _ObjectEnd()

    @property
    def is_cut(self) -> bool:
        """Whether the arguments of the last call have not come to their end."""
        return self._state is _State.ARGUMENTS

    def decode(self, text: str) -> list[Delta]:
        """What is certain after one more piece of text."""
        self._held += text
        return list(self._advance(final=False))

    def flush(self) -> list[Delta]:
        """What was held back, now that no more text comes."""
        return list(self._advance(final=True))

    def _advance(self, *, final: bool) -> Iterator[Delta]:
        before = None
        while self._held and before != (self._held, self._state):
            before = self._held, self._state
            match self._state:
                case _State.TEXT:
                    yield from self._text(final)
                case _State.ARGUMENTS:
                    yield self._piece()
                case _State.TAIL:
                    self._tail(final)

    def _text(self, final: bool) -> Iterator[Delta]:
        """Passes on what stands before the next call, or before what may be the beginning of one."""
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
            yield from self._begin(final)

    def _begin(self, final: bool) -> Iterator[Delta]:
        """A call, if the start tag in front is that of one; else the tag is text."""
        found = next((each for each in self._heads if self._held.startswith(each)), None)
        if found:
            yield ToolCallDelta(self.num_calls, f"call_{secrets.token_hex(12)}", self._heads[found], "")
            self.num_calls += 1
            self._state, self._arguments = _State.ARGUMENTS, _ObjectEnd()
            self._held = self._held[len(found) - 1 :]
        elif final or not any(each.startswith(self._held) for each in self._heads):
            yield TextDelta(START)
            self._held = self._held[len(START) :]

    def _piece(self) -> ToolCallDelta:
        """Arguments, to their end or to that of what there is."""
        stop = self._arguments.find(self._held)
        if stop is None:
            stop = len(self._held)
        else:
            self._state = _State.TAIL
        piece, self._held = self._held[:stop], self._held[stop:]
        return ToolCallDelta(self.num_calls - 1, None, None, piece)

    def _tail(self, final: bool) -> None:
        """Drops what ends a call, once it is there whole or no more comes."""
        if self._held.startswith(TAIL) or not TAIL.startswith(self._held):
            self._held = self._held.removeprefix(TAIL)
            self._state, self._skip_space = _State.TEXT, True
        elif final:
            self._held = ""


class _ObjectEnd:
    """Finds the end of a JSON object that comes in pieces, by its braces outside of strings."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._is_escaped = False

    def find(self, piece: str) -> int | None:
        """Index just past the object in its next piece; None where it goes on behind that."""
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
