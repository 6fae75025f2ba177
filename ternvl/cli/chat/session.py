"""The loop of `ternvl chat`: reads messages and commands, and shows answers."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

from ternvl.cli.chat.commands import HELP, Leaving, completions, execute
from ternvl.cli.chat.conversation import ConsoleChat
from ternvl.cli.chat.keyboard import Keyboard
from ternvl.cli.chat.markdown import Markdown
from ternvl.errors import TernvlError


def talk(chat: ConsoleChat, history: Path | None) -> None:
    """Read messages and commands, and answer them, until the input ends, /exit, or Ctrl-C twice.

    `history` is the file that a terminal's lines are kept in; None keeps none.
    """
    keyboard = Keyboard(history, completions)
    if keyboard.is_terminal:
        print(f"{chat.llm.name} is ready. /help lists the commands.")
    was_interrupted = False
    while True:
        try:
            line = keyboard.read()
            if line is None:
                return
            was_interrupted = False
            if line:
                _handle(chat, line, is_terminal=keyboard.is_terminal)
        except Leaving:
            return
        except TernvlError as error:
            print(f"ternvl: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            if was_interrupted:
                return print()
            was_interrupted = True
            print("\n(Ctrl-C again leaves, and so does /exit.)" if keyboard.is_terminal else "")


def _handle(chat: ConsoleChat, line: str, *, is_terminal: bool) -> None:
    """Answer a message or run a command. What a command reports is for people, so pipes get /help alone."""
    if not line.startswith("/"):
        show(chat.ask(line), is_markdown=not chat.has_form)
    elif line == "/retry":
        show(chat.retry(), is_markdown=not chat.has_form)
    else:
        report = execute(chat, line)
        if report is not None and (is_terminal or report == HELP):
            print(report)


def show(answer: Generator[str], *, is_markdown: bool = True) -> None:
    """Print an answer as it is generated; in a terminal that can, Markdown is shown as what it means."""
    markdown = Markdown() if is_markdown and _renders() else None
    with closing(answer) as pieces:
        try:
            for piece in pieces:
                print(piece if markdown is None else markdown.feed(piece), end="", flush=True)
        finally:
            print("" if markdown is None else markdown.close(), flush=True)


def _renders() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb" and "NO_COLOR" not in os.environ
