"""The commands of a conversation, such as /image."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from glob import escape, glob
from typing import NoReturn

from ternvl.cli.chat.attachments import image_part, pasted_path, video_part
from ternvl.cli.chat.conversation import ConsoleChat
from ternvl.errors import RequestError


class Leaving(Exception):
    """The conversation is over."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command: what is typed after its name, what it does, and the function that does it."""

    arguments: str
    help: str
    run: Callable[[ConsoleChat, str], str | None]
    """Takes the conversation and the text after the name; returns what a terminal shows."""


def _image(chat: ConsoleChat, text: str) -> str:
    path = pasted_path(_given(text, "/image PATH"))
    chat.media.append(image_part(path))
    return f"{path} is attached to your next message."


def _video(chat: ConsoleChat, text: str) -> str:
    path = pasted_path(_given(text, "/video PATH"))
    chat.media.append(video_part(path))
    return f"{path} is attached to your next message."


def _system(chat: ConsoleChat, text: str) -> str:
    if text:
        chat.system = text
        return "The system message is set."
    return chat.llm.config.system_message if chat.system is None else chat.system


def _save(chat: ConsoleChat, text: str) -> str:
    path = pasted_path(_given(text, "/save FILE"))
    chat.save(path)
    return f"{len(chat.messages)} messages are in {path}."


def _load(chat: ConsoleChat, text: str) -> str:
    return f"The conversation goes on after {chat.load(pasted_path(_given(text, '/load FILE')))} messages."


def _clear(chat: ConsoleChat, text: str) -> None:
    chat.clear()


def _exit(chat: ConsoleChat, text: str) -> NoReturn:
    raise Leaving


def _given(text: str, usage: str) -> str:
    if not text:
        raise RequestError(f"{usage.split()[0]} needs a name after it: {usage}.")
    return text


COMMANDS = {
    "/image": Command("PATH", "attach an image to your next message", _image),
    "/video": Command("PATH", "attach a video to your next message", _video),
    "/system": Command("TEXT", "set the system message; without TEXT, show it", _system),
    "/retry": Command("", "answer your last message again", lambda chat, text: None),
    "/save": Command("FILE", "write the conversation to a file, as JSON", _save),
    "/load": Command("FILE", "go on with the conversation of a file", _load),
    "/clear": Command("", "start a new conversation", _clear),
    "/help": Command("", "show this list", lambda chat, text: HELP),
    "/exit": Command("", "end the program (so does Ctrl-D, and Ctrl-C twice)", _exit),
}
"""All commands. The session runs /retry itself, because it shows an answer."""
SAME = {"/reset": "/clear", "/quit": "/exit"}
"""Other names of commands."""
_KEYS = '''
A line that ends in \\ goes on in the next one, and lines between """ and """ are one message.
Ctrl-C stops an answer.'''
HELP: str = "\n".join(f"{f'{name} {each.arguments}':<14}{each.help}" for name, each in COMMANDS.items()) + _KEYS


def completions(line: str) -> list[str]:
    """Return the lines that a line may become with the tab key: a command, or a path after one that takes it."""
    name, space, text = line.partition(" ")
    if not space:
        return [f"{each} " if COMMANDS[each].arguments else each for each in COMMANDS if name and each.startswith(name)]
    if name not in COMMANDS or COMMANDS[name].arguments not in ("PATH", "FILE"):
        return []
    typed = os.path.expanduser(text)
    found = sorted(glob(escape(typed) + "*"))
    return [f"{name} {text}{path[len(typed) :]}{'/' if os.path.isdir(path) else ''}" for path in found]


def execute(chat: ConsoleChat, line: str) -> str | None:
    """Run a command, and return what a terminal shows.

    Raises RequestError for an unknown command and for what the command cannot do, Leaving at the end.
    """
    name, _, text = line.partition(" ")
    command = COMMANDS.get(SAME.get(name, name))
    if command is None:
        raise RequestError(f"There is no command {name}; /help lists the commands.")
    return command.run(chat, text.strip())
