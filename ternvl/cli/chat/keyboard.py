"""Reads messages: from a terminal with a history that is kept, or from a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_MOST = 1000
"""The lines of the history that are kept."""
_BLOCK = '"""'


def history_path() -> Path:
    """Return the file of the history: `$XDG_STATE_HOME/ternvl/chat_history`, by default in `~/.local/state`."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "ternvl" / "chat_history"


class Keyboard:
    """The messages that a user types. Only a terminal has line editing, prompts and a history."""

    def __init__(self, history: Path | None, complete: Callable[[str], list[str]] = lambda line: []) -> None:
        """`history` is the file that lines are kept in; None keeps none beyond this conversation.

        `complete` returns the lines that a line may become with the tab key.
        """
        self.is_terminal = sys.stdin.isatty()
        self._history = None
        if self.is_terminal:
            with suppress(ImportError):  # not on Windows
                import readline  # importing it gives `input` its line editing

                readline.set_auto_history(True)
                readline.set_completer_delims("")
                readline.set_completer(lambda line, index: dict(enumerate(complete(line))).get(index))
                is_libedit = "libedit" in (readline.__doc__ or "")
                readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")
                self._history = _opened(history)

    def read(self) -> str | None:
        """Return the next message without surrounding white space; None at the end of the input.

        A line that ends in a backslash goes on in the next one. Lines between two `\"\"\"` are one message.
        """
        text = self._line("> ")
        if text is None:
            return None
        if text.lstrip().startswith(_BLOCK):
            return self._block(text.lstrip().removeprefix(_BLOCK))
        while text.endswith("\\"):
            text = text[:-1] + "\n" + (self._line(". ") or "")
        return text.strip()

    def _block(self, text: str) -> str:
        while _BLOCK not in text:
            line = self._line(". ")
            if line is None:
                break
            text += "\n" + line
        return text.partition(_BLOCK)[0].strip()

    def _line(self, prompt: str) -> str | None:
        try:
            line = input(prompt if self.is_terminal else "")
        except EOFError:
            return None
        if self._history is not None and line.strip():
            _append(self._history)
        return line


def _opened(path: Path | None) -> Path | None:
    """Read the history in a file, which only its owner may read; None if it cannot be kept there."""
    import readline

    if path is None or not hasattr(readline, "append_history_file"):
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.fchmod(descriptor, 0o600)
        os.close(descriptor)
        readline.read_history_file(path)
        if readline.get_current_history_length() > _MOST:
            _shorten(path)
    except OSError:
        return None
    return path


def _shorten(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    partial = path.with_name(path.name + ".part")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "wb") as file:
        file.writelines(lines[-_MOST:])
    os.replace(partial, path)


def _append(path: Path) -> None:
    """Append the last line at once, so that a killed program has lost none."""
    import readline

    with suppress(OSError):
        readline.append_history_file(1, path)
