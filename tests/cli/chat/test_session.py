"""The commands of a conversation, its file, its history, and Ctrl-C."""

from __future__ import annotations

import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest

from ternvl.cli.chat.commands import COMMANDS, HELP, Leaving, completions, execute
from ternvl.cli.chat.conversation import ConsoleChat
from ternvl.cli.chat.keyboard import Keyboard
from ternvl.cli.chat.session import talk
from ternvl.errors import RequestError
from ternvl.params import Grammar
from tests.prompt.videos import animation, picture
from tests.server.fakes import scripted_llm

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def chat() -> ConsoleChat:
    return ConsoleChat(scripted_llm("Yes."), {"max_tokens": 99})


def says(chat: ConsoleChat, text: str) -> str:
    return "".join(chat.ask(text))


def typed(monkeypatch: pytest.MonkeyPatch, *lines: str) -> list[str | None]:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    keyboard = Keyboard(None)
    return list(iter(keyboard.read, None))


def test_messages_of_several_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert typed(monkeypatch, "one\\", "two", "three") == ["one\ntwo", "three"]
    assert typed(monkeypatch, '"""a', "", ' b\\n"""', "c") == ["a\n\n b\\n", "c"]
    assert typed(monkeypatch, '"""all in one"""', '"""never', "ends") == ["all in one", "never\nends"]
    assert typed(monkeypatch, "ends\\") == ["ends"]


def test_help_names_every_command(chat: ConsoleChat) -> None:
    assert execute(chat, "/help") == HELP
    assert [name for name in COMMANDS if f"{name} " not in HELP] == []
    for line, error in (
        ("/nothing", "no command /nothing"),
        ("/image", "/image needs a name"),
        ("/save", "/save FILE"),
    ):
        with pytest.raises(RequestError, match=error):
            execute(chat, line)
    for line in ("/exit", "/quit"):
        with pytest.raises(Leaving):
            execute(chat, line)


def test_the_tab_key_completes_commands_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert completions("/re") == ["/retry"]
    assert completions("/s") == ["/system ", "/save "]
    assert completions("hello") == completions("/system ") == completions("") == completions("/nothing a") == []
    (tmp_path / "a [1].png").touch()
    (tmp_path / "apples").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    for start in (str(tmp_path), "~"):
        assert completions(f"/image {start}/a") == [f"/image {start}/a [1].png", f"/image {start}/apples/"]
        assert completions(f"/load {start}/a [") == [f"/load {start}/a [1].png"]


def test_a_system_message_may_change(chat: ConsoleChat) -> None:
    assert execute(chat, "/system") == chat.llm.config.system_message
    execute(chat, "/system Be brief.")
    assert execute(chat, "/system") == "Be brief."
    says(chat, "hi")
    assert [message["role"] for message in chat.messages] == ["system", "user", "assistant"]
    execute(chat, "/clear")
    assert chat.messages == [{"role": "system", "content": "Be brief."}]


def test_a_conversation_is_saved_and_goes_on(chat: ConsoleChat, tmp_path: Path, image: Path) -> None:
    clip = tmp_path / "clip.gif"
    clip.write_bytes(animation([picture(number) for number in range(4)]))
    for line in ("/system Be brief.", f"/image '{image}'", f"/video {clip}"):
        execute(chat, line)
    says(chat, "hi")
    path = tmp_path / "chat.json"
    assert execute(chat, f"/save {path}") == f"3 messages are in {path}."
    execute(chat, f"/save {path}")  # its own file may be replaced
    again = ConsoleChat(chat.llm, {"max_tokens": 99})
    with pytest.raises(RequestError, match="it exists already"):
        execute(again, f"/save {path}")
    execute(again, f"/load {path}")
    assert again.messages == chat.messages
    assert again.system == "Be brief."
    assert says(again, "more") == "Yes."
    execute(again, f"/save {path}")
    assert len(json.loads(path.read_text())["messages"]) == 5


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file"),
        ("no json", "holds no conversation"),
        ("[]", "holds no conversation"),
        ('{"messages": []}', "messages is empty"),
        ('{"messages": [{"role": "nobody", "content": ""}]}', "role"),
    ],
)
def test_a_file_that_is_no_conversation_changes_nothing(
    chat: ConsoleChat, tmp_path: Path, content: str | None, says: str
) -> None:
    path = tmp_path / "chat.json"
    if content is not None:
        path.write_text(content)
    list(chat.ask("hi"))
    before = chat.messages
    with pytest.raises(RequestError, match=says):
        execute(chat, f"/load {path}")
    assert chat.messages == before
    with pytest.raises(RequestError, match="cannot be written"):
        execute(chat, f"/save {tmp_path}/none/chat.json")


def test_a_file_that_is_no_image_is_refused_at_once(chat: ConsoleChat, tmp_path: Path) -> None:
    path = tmp_path / "notes.png"
    path.write_text("no image")
    with pytest.raises(RequestError, match=r"notes\.png is not an image"):
        execute(chat, f"/image {path}")
    assert chat.media == []


def test_retry_answers_the_last_message_again(chat: ConsoleChat) -> None:
    with pytest.raises(RequestError, match="no message"):
        list(chat.retry())
    says(chat, "one")
    says(chat, "two")
    before = chat.messages
    assert "".join(chat.retry()) == "Yes."
    assert chat.messages == before


def interrupted(pieces: Iterator[str], after: int) -> str:
    """What was said until the reader left."""
    said = "".join(next(pieces) for _ in range(after))
    pieces.close()  # type: ignore[attr-defined]
    return said


def test_what_was_said_before_an_interruption_stays(image: Path) -> None:
    chat = ConsoleChat(scripted_llm("one two three", endless=True), {"max_tokens": 999})
    execute(chat, f"/image {image}")
    assert interrupted(chat.ask("hi"), 3) == chat.messages[1]["content"] == "one"
    assert chat.media == []
    assert len(interrupted(chat.retry(), 2)) == 2
    assert len(chat.messages) == 2


def test_what_cannot_be_asked_is_not_lost(chat: ConsoleChat, image: Path) -> None:
    execute(chat, f"/image {image}")
    with pytest.raises(RequestError):
        says(chat, "a long text " * 2000)
    assert (chat.messages, len(chat.media)) == ([], 1)
    assert says(chat, "hi") == "Yes."


def test_only_a_terminal_that_can_shows_markdown_as_it_means(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    llm = scripted_llm("- **Yes**")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)

    def shown(**params: Any) -> str:
        chat = ConsoleChat(llm, {"max_tokens": 99, **params})
        monkeypatch.setattr(Keyboard, "read", lambda keyboard: None if chat.messages else "hi")
        talk(chat, None)
        return capsys.readouterr().out

    assert shown() == "• \x1b[1mYes\x1b[22m\n"
    assert shown(grammar=Grammar("json_object")) == "- **Yes**\n"
    monkeypatch.setenv("NO_COLOR", "1")
    assert shown() == "- **Yes**\n"


def test_two_interruptions_leave(monkeypatch: pytest.MonkeyPatch, chat: ConsoleChat) -> None:
    script: Iterator[Any] = iter([KeyboardInterrupt, "hi", KeyboardInterrupt, KeyboardInterrupt, "never"])

    def read(keyboard: Keyboard) -> str:
        said = next(script)
        if said is KeyboardInterrupt:
            raise KeyboardInterrupt
        return str(said)

    monkeypatch.setattr(Keyboard, "read", read)
    talk(chat, None)
    assert next(script) == "never"
    assert [message["content"] for message in chat.messages if message["role"] == "assistant"] == ["Yes."]


class Terminal:
    """`ternvl chat` in a terminal of its own."""

    def __init__(self, state: Path, *flags: str) -> None:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(state), "TERM": "xterm"}
        environment.pop("NO_COLOR", None)
        self.fd, other = os.openpty()
        command = [sys.executable, "-m", "ternvl", "chat", *flags]
        self.process = subprocess.Popen(
            command, stdin=other, stdout=other, stderr=other, env=environment, start_new_session=True
        )
        os.close(other)
        self.seen = ""

    def until(self, pattern: str) -> str:
        """Read until a pattern appears, and return all that was read."""
        self.seen, end = "", time.monotonic() + 60
        while not re.search(pattern, self.seen, re.DOTALL):
            assert time.monotonic() < end, self.seen
            if select.select([self.fd], [], [], 1)[0]:
                self.seen += os.read(self.fd, 4096).decode("utf-8", "replace")
        return self.seen

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C, and again if it did nothing: Python only sees it once readline waits for a key."""
        end = time.monotonic() + 60
        while time.monotonic() < end and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            if select.select([self.fd], [], [], 5)[0]:
                return

    def ends(self) -> int:
        with suppress(OSError):  # the other side is closed
            while os.read(self.fd, 4096):
                pass
        return self.process.wait(60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def test_a_conversation_in_a_terminal(tmp_path: Path) -> None:
    with Terminal(tmp_path, "--temperature", "0") as terminal:
        terminal.until("ternvl-nano is ready.*> ")
        terminal.type("/hel\t\n")
        terminal.until("/image PATH.*> ")
        terminal.type("What is the capital of France?\n")
        assert "Paris." in terminal.until("Paris.*> ")
        terminal.interrupt()
        terminal.until("Ctrl-C again leaves.*> ")
        terminal.interrupt()
        assert terminal.ends() == 0
    kept = tmp_path / "ternvl" / "chat_history"
    assert kept.read_text() == "/help\nWhat is the capital of France?\n"
    assert kept.stat().st_mode & 0o777 == 0o600
