"""Markdown in a terminal, as it is generated: what is bold, code, a heading or a list item looks like it.

A character is held back only while it may begin a mark, so the text appears piece by piece, and nothing that has been
printed changes. Marks that never end have no effect beyond their line.
"""

from __future__ import annotations

import re

_BOLD, _NORMAL = "\x1b[1m", "\x1b[22m"
_CODE, _TEXT = "\x1b[36m", "\x1b[39m"
_RESET = "\x1b[0m"

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters with which a text could take over the terminal."""
_FENCE = re.compile(r" {0,3}(```|~~~)[^\n]*\n")
_MAYBE_FENCE = re.compile(r" {0,3}(`{1,2}|~{1,2}|(```|~~~)[^\n]*)?")
_HEADING = re.compile(r"#{1,6} +")
_ITEM = re.compile(r"( *)[-*+] ")
_MAYBE_MARK = re.compile(r"#{1,6}| *[-*+]?")
_PLAIN = re.compile(r"[^`*\n]+")


class Markdown:
    """Turns pieces of Markdown into text with the codes of a terminal."""

    def __init__(self) -> None:
        self._held = ""
        self._starts_line = True
        self._fence = ""
        self._is_bold = self._is_code = self._is_heading = False

    def feed(self, piece: str) -> str:
        """Return what can be shown after another piece of text."""
        self._held += _CONTROL.sub("", piece)
        return self._take(is_end=False)

    def close(self) -> str:
        """Return the rest, and the end of all styles."""
        return self._take(is_end=True) + (_RESET if self._fence or self._is_styled else "")

    @property
    def _is_styled(self) -> bool:
        return self._is_bold or self._is_code or self._is_heading

    def _take(self, *, is_end: bool) -> str:
        shown = ""
        while self._held:
            step = self._start if self._starts_line else self._inline
            taken = step(is_end)
            if taken is None:
                break
            shown += taken
        return shown

    def _start(self, is_end: bool) -> str | None:
        """Take a mark at the beginning of a line; None while more text is needed to know it."""
        if fence := _FENCE.match(self._held):
            if self._fence in ("", fence[1]):
                self._fence = "" if self._fence else fence[1]
                self._cut(fence.end())
                return _CODE + fence[0] if self._fence else fence[0].rstrip("\n") + _TEXT + "\n"
        elif not is_end and _MAYBE_FENCE.fullmatch(self._held):
            return None
        if self._fence:
            return self._rest_of_code()
        if heading := _HEADING.match(self._held):
            self._is_heading = True
            return self._begin(heading.end(), _BOLD)
        if item := _ITEM.match(self._held):
            return self._begin(item.end(), f"{item[1]}• ")
        if not is_end and _MAYBE_MARK.fullmatch(self._held):
            return None
        return self._begin(0, "")

    def _begin(self, length: int, shown: str) -> str:
        self._cut(length)
        self._starts_line = False
        return shown

    def _rest_of_code(self) -> str:
        """Take a line of a code block, or the part of it that has come."""
        line, newline, _ = self._held.partition("\n")
        self._cut(len(line + newline))
        self._starts_line = bool(newline)
        return line + newline

    def _inline(self, is_end: bool) -> str | None:
        """Take a mark or plain text within a line; None while more text is needed to know it."""
        if self._fence:
            return self._rest_of_code()
        if plain := _PLAIN.match(self._held):
            self._cut(plain.end())
            return plain[0]
        if self._held[0] == "\n":
            ended = _RESET if self._is_styled else ""
            self._is_bold = self._is_code = self._is_heading = False
            self._starts_line = True
            self._cut(1)
            return ended + "\n"
        if self._held[0] == "`":
            self._is_code = not self._is_code
            self._cut(1)
            return _CODE if self._is_code else _TEXT
        return self._star(is_end)

    def _star(self, is_end: bool) -> str | None:
        """Take one or two stars: two are bold if they touch the text that they enclose."""
        if not is_end and self._held in ("*", "**"):
            return None
        is_pair = self._held.startswith("**") and not self._is_code
        if is_pair and not self._is_bold and self._held[2:3].strip():
            self._is_bold = True
            self._cut(2)
            return _BOLD
        if is_pair and self._is_bold:
            self._is_bold = False
            self._cut(2)
            return "" if self._is_heading else _NORMAL
        self._cut(1 + is_pair)
        return "**" if is_pair else "*"

    def _cut(self, length: int) -> None:
        self._held = self._held[length:]
