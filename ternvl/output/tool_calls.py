"""Tool calls in an answer: `<tool_call>`, a JSON object with a name and arguments, `</tool_call>` (Qwen2.5's form)."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, NoReturn

START, END = "<tool_call>", "</tool_call>"

_SPACE = " \t\n\r"
_OUTSIDE_STRINGS = frozenset(_SPACE + '{}[]:,"+-.0123456789eEtrufalsn')


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
    BEFORE_OBJECT = auto()
    IN_OBJECT = auto()
    IN_STRING = auto()
    AFTER_BACKSLASH = auto()
    AFTER_OBJECT = auto()
    NO_CALL = auto()


class _Candidate:
    """Follows the text behind a start tag, and knows as early as can be that it is no call.

    Only strings and brackets are followed, so that an end tag inside a string of the arguments ends nothing; whether
    the object is JSON is for `json` to say.
    """

    def __init__(self) -> None:
        self.state = _State.BEFORE_OBJECT
        self.position = len(START)
        """Index just past the last character that was followed."""
        self.stop = 0
        """Index just past the object, once it has ended."""
        self._depth = 0

    def follow(self, text: str) -> None:
        """Goes on in `text`, which begins with the start tag, to its end or to where the state is final."""
        final = (_State.AFTER_OBJECT, _State.NO_CALL)
        while self.position < len(text) and self.state not in final:
            self.state = self._next(text[self.position])
            self.position += 1
            if self.state is _State.AFTER_OBJECT:
                self.stop = self.position

    def _next(self, char: str) -> _State:
        match self.state:
            case _State.BEFORE_OBJECT:
                if char in _SPACE:
                    return self.state
                self._depth = 1
                return _State.IN_OBJECT if char == "{" else _State.NO_CALL
            case _State.IN_STRING:
                if char < " ":
                    return _State.NO_CALL
                return {'"': _State.IN_OBJECT, "\\": _State.AFTER_BACKSLASH}.get(char, _State.IN_STRING)
            case _State.AFTER_BACKSLASH:
                return _State.IN_STRING
            case _:
                return self._next_in_object(char)

    def _next_in_object(self, char: str) -> _State:
        if char not in _OUTSIDE_STRINGS:
            return _State.NO_CALL
        if char == '"':
            return _State.IN_STRING
        self._depth += (char in "{[") - (char in "}]")
        return _State.IN_OBJECT if self._depth else _State.AFTER_OBJECT


class ToolCallParser:
    """Splits an answer's text into text and tool calls, whatever the pieces in which it comes.

    A call is held back until its end tag, because only then is it certain to be one. What looks like a call and is no
    JSON object with a name is text. White space behind a call is dropped.
    """

    def __init__(self) -> None:
        self.num_calls = 0
        """Calls found so far."""
        self._held = ""
        self._candidate: _Candidate | None = None
        self._skip_space = False

    def decode(self, text: str) -> list[Delta]:
        """What is certain after one more piece of text."""
        self._held += text
        return list(self._advance(final=False))

    def flush(self) -> list[Delta]:
        """What was held back, now that no more text comes. A whole call without its end tag is a call."""
        return list(self._advance(final=True))

    def _advance(self, *, final: bool) -> Iterator[Delta]:
        while self._held:
            if self._candidate is None:
                yield from self._text(final)
                if not self._held.startswith(START):
                    return
                self._candidate = _Candidate()
            stop = self._call_stop(self._candidate, final)
            if stop is None:
                return
            call = parse_call(self._held[len(START) : self._candidate.stop]) if stop else None
            self._candidate = None
            yield from self._call(*call) if call else self._no_call()
            if call:
                self._held = self._held[stop:]

    def _text(self, final: bool) -> Iterator[TextDelta]:
        """Yields what stands before the next start tag, or before what may be the beginning of one."""
        if self._skip_space:
            self._held = self._held.lstrip()
            self._skip_space = not self._held
        stop = self._held.find(START)
        if stop < 0:
            stop = len(self._held) - (0 if final else _overlap(self._held, START))
        if stop:
            yield TextDelta(self._held[:stop])
            self._held = self._held[stop:]

    def _call_stop(self, candidate: _Candidate, final: bool) -> int | None:
        """Index just past a call with its end tag; 0 where there is no call; None where more text must decide."""
        candidate.follow(self._held)
        if candidate.state is not _State.AFTER_OBJECT:
            return 0 if final or candidate.state is _State.NO_CALL else None
        rest = self._held[candidate.stop :].lstrip()
        if rest.startswith(END):
            return len(self._held) - len(rest) + len(END)
        if END.startswith(rest):
            return len(self._held) if final else None
        return 0

    def _call(self, name: str, arguments: str) -> Iterator[ToolCallDelta]:
        index = self.num_calls
        self.num_calls += 1
        self._skip_space = True
        yield ToolCallDelta(index, f"call_{secrets.token_hex(12)}", name, "")
        yield ToolCallDelta(index, None, None, arguments)

    def _no_call(self) -> Iterator[TextDelta]:
        """The start tag is text; what follows is read again, for it may hold a call."""
        self._held = self._held[len(START) :]
        yield TextDelta(START)


def parse_call(text: str) -> tuple[str, str] | None:
    """Name and arguments (their JSON as it was written, `{}` where there are none) of a call's JSON object.

    None where `text` is no JSON object with a name.
    """
    try:
        values, sources = _members(text.strip(_SPACE))
        name = values["name"]
        if not isinstance(name, str) or not name:
            return None
        name.encode()
    except (ValueError, LookupError, RecursionError):
        return None
    return name, sources.get("arguments", "{}")


def _members(text: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Values of a JSON object, and the text of each as it was written. Raises ValueError where it is none."""
    values = _DECODER.decode(text)
    if not isinstance(values, dict):
        raise ValueError("not an object")
    sources: dict[str, str] = {}
    index = _skip_space(text, 1)
    while text[index] == '"':
        key, index = _DECODER.raw_decode(text, index)
        start = _skip_space(text, _skip_space(text, index) + 1)
        _, stop = _DECODER.raw_decode(text, start)
        sources[key] = text[start:stop]
        index = _skip_space(text, _skip_space(text, stop) + 1)
        if index >= len(text):
            break
    return values, sources


def _skip_space(text: str, index: int) -> int:
    while index < len(text) and text[index] in _SPACE:
        index += 1
    return index


def _overlap(text: str, tag: str) -> int:
    """Length of the longest tail of `text` that begins `tag`, short of all of it."""
    return next(size for size in range(min(len(tag) - 1, len(text)), -1, -1) if text.endswith(tag[:size]))


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_int=float)  # an int of many digits is an error
