"""What a model thinks before it answers: `<think>`, its reasoning, `</think>` at the beginning of the text."""

from __future__ import annotations

from enum import Enum, auto

from ternvl.output.stop import overlap

START, END = "<think>", "</think>"


class _State(Enum):
    BEFORE = auto()
    REASONING = auto()
    ANSWER = auto()


class ReasoningParser:
    """Splits an answer's text into reasoning and the answer itself, whatever the pieces in which it comes.

    The tags are of neither, nor is white space before the first and behind the last of them. An answer that begins in
    another way has no reasoning; one that ends within it has nothing else.
    """

    def __init__(self) -> None:
        self._state = _State.BEFORE
        self._held = ""
        self._skip_space = False

    def decode(self, text: str) -> tuple[str, str]:
        """Reasoning and answer, as far as they are certain after one more piece of text."""
        self._held += text
        if self._state is _State.BEFORE:
            self._begin()
        reasoning = self._reasoning() if self._state is _State.REASONING else ""
        return reasoning, self._answer() if self._state is _State.ANSWER else ""

    def flush(self) -> tuple[str, str]:
        """What was held back, now that no more text comes."""
        held, self._held = self._held, ""
        return (held, "") if self._state is _State.REASONING else ("", held)

    def _begin(self) -> None:
        begun = self._held.lstrip()
        if begun.startswith(START):
            self._state, self._held = _State.REASONING, begun.removeprefix(START)
        elif not START.startswith(begun):
            self._state = _State.ANSWER

    def _reasoning(self) -> str:
        stop = self._held.find(END)
        if stop >= 0:
            self._state, self._skip_space = _State.ANSWER, True
            reasoning, self._held = self._held[:stop], self._held[stop + len(END) :]
            return reasoning
        stop = len(self._held) - overlap(self._held, END)
        reasoning, self._held = self._held[:stop], self._held[stop:]
        return reasoning

    def _answer(self) -> str:
        if self._skip_space:
            self._held = self._held.lstrip()
            self._skip_space = not self._held
        answer, self._held = self._held, ""
        return answer
