"""Separates a model's reasoning, written between `<think>` and `</think>` at the start, from its answer."""

from __future__ import annotations

from enum import Enum, auto

from ternvl.output.stop import overlap

START, END = "<think>", "</think>"


class _ReasoningState(Enum):
    BEFORE = auto()
    REASONING = auto()
    ANSWER = auto()


class ReasoningParser:
    """Splits a text into reasoning and the answer itself, independently of how the text is cut into pieces.

    The tags belong to neither part, nor does white space before `<think>` and after `</think>`. A text that does not
    begin with `<think>` is all answer; a text that ends before `</think>` is all reasoning.
    """

    def __init__(self) -> None:
        self._state = _ReasoningState.BEFORE
        self._held = ""
        self._skip_space = False

    def decode(self, text: str) -> tuple[str, str]:
        """Return the reasoning and the answer text that are certain after one more piece of text."""
        self._held += text
        if self._state is _ReasoningState.BEFORE:
            self._find_start()
        reasoning = self._take_reasoning() if self._state is _ReasoningState.REASONING else ""
        return reasoning, self._take_answer() if self._state is _ReasoningState.ANSWER else ""

    def flush(self) -> tuple[str, str]:
        """Return the reasoning and the answer text that were held back. Call it once, after the last piece."""
        held, self._held = self._held, ""
        return (held, "") if self._state is _ReasoningState.REASONING else ("", held)

    def _find_start(self) -> None:
        text = self._held.lstrip()
        if text.startswith(START):
            self._state, self._held = _ReasoningState.REASONING, text.removeprefix(START)
        elif not START.startswith(text):
            self._state = _ReasoningState.ANSWER

    def _take_reasoning(self) -> str:
        stop = self._held.find(END)
        if stop >= 0:
            self._state, self._skip_space = _ReasoningState.ANSWER, True
            reasoning, self._held = self._held[:stop], self._held[stop + len(END) :]
            return reasoning
        stop = len(self._held) - overlap(self._held, END)
        reasoning, self._held = self._held[:stop], self._held[stop:]
        return reasoning

    def _take_answer(self) -> str:
        if self._skip_space:
            self._held = self._held.lstrip()
            self._skip_space = not self._held
        answer, self._held = self._held, ""
        return answer
