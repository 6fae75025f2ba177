"""A chat with a model in a terminal, or through pipes."""

from __future__ import annotations

import base64
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ternvl.errors import RequestError, TernvlError
from ternvl.llm import LLM, Delta, RequestOutput

HELP = """\
/image PATH   attach an image to your next message
/video PATH   attach a video to your next message
/reset        start a new conversation
/quit, /exit  end the program (so does Ctrl-D)"""


class ConsoleChat:
    """A conversation with a model: the turns so far, and the images and videos of the next message."""

    def __init__(
        self, llm: LLM, params: dict[str, Any], *, system: str | None = None, adapter: str | None = None
    ) -> None:
        """`params` are the fields of `SamplingParams` in which the answers differ from the checkpoint's defaults.

        `system` replaces the checkpoint's system message; `adapter` names a LoRA adapter that is loaded.
        """
        self.llm = llm
        self._system = [] if system is None else [{"role": "system", "content": system}]
        self._adapter = adapter
        self.last: RequestOutput | None = None
        """The prompt of the last question, with its answer."""
        self._params = replace(llm.default_params(), **params)
        self._messages: list[dict[str, Any]] = []
        self._media: list[dict[str, Any]] = []

    def attach_image(self, path: Path) -> None:
        """Add an image to the next message. Raises RequestError if the file cannot be read."""
        try:
            data = path.expanduser().read_bytes()
        except (OSError, ValueError, RuntimeError) as error:
            raise RequestError(f"The image {path} cannot be read: {getattr(error, 'strerror', error)}.") from error
        url = "data:;base64," + base64.b64encode(data).decode()
        self._media.append({"type": "image_url", "image_url": {"url": url}})

    def attach_video(self, path: Path) -> None:
        """Add a video to the next message. Raises RequestError if the file cannot be read."""
        try:
            path = path.expanduser()
            path.open("rb").close()
        except (OSError, ValueError, RuntimeError) as error:
            raise RequestError(f"The video {path} cannot be read: {getattr(error, 'strerror', error)}.") from error
        self._media.append({"type": "video", "video": path})

    def reset(self) -> None:
        """Forget all turns, images and videos."""
        self._messages.clear()
        self._media.clear()

    def ask(self, text: str) -> Iterator[str]:
        """Yield pieces of the answer as they are generated: its reasoning, if any, then an empty line, then its text.

        A turn that is not read to its end is forgotten. Raises what `LLM.stream` raises.
        """
        media, self._media = self._media, []
        turn = {"role": "user", "content": [*media, {"type": "text", "text": text}]}
        messages = [*self._system, *self._messages, turn]
        with self.llm.stream(messages, self._params, adapter=self._adapter) as deltas:
            yield from _pieces(deltas)
            self.last = deltas.output
        self._messages += [turn, {"role": "assistant", "content": self.last.text}]


def _pieces(deltas: Iterable[Delta]) -> Iterator[str]:
    """Yield reasoning and text, with an empty line between them."""
    reasoning = ""
    for delta in deltas:
        reasoning += delta.reasoning
        gap = ""
        if reasoning and delta.text:
            num_newlines = len(reasoning) - len(reasoning.rstrip("\n"))
            reasoning, gap = "", "\n" * (2 - num_newlines)
        yield delta.reasoning + gap + delta.text


def answer(chat: ConsoleChat, question: str, *, as_json: bool) -> None:
    """Print an answer as it is generated, or as a JSON object with its token counts."""
    if not as_json:
        _show(chat.ask(question))
        return
    for _ in chat.ask(question):
        pass
    assert chat.last is not None
    prompt, completion = chat.last.prompt, chat.last.outputs[0]
    usage = {
        "prompt_tokens": prompt.num_tokens,
        "image_tokens": prompt.num_image_tokens,
        "completion_tokens": len(completion.token_ids),
    }
    described = {"model": chat.llm.name, "text": completion.text, "finish_reason": completion.finish_reason.value}
    if completion.reasoning:
        described["reasoning"] = completion.reasoning
    print(json.dumps(described | {"usage": usage}, ensure_ascii=False))


def talk(chat: ConsoleChat) -> None:
    """Read messages and commands, and answer them, until the input ends or /quit."""
    if sys.stdin.isatty():
        import readline  # noqa: F401  # importing it gives `input` its line editing

        print(f"{chat.llm.name} is ready. /help lists the commands.")
    while (line := _read_line()) is not None:
        try:
            if line in ("/quit", "/exit"):
                return
            if line:
                _execute(chat, line)
        except TernvlError as error:
            print(f"ternvl: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            print()


def _execute(chat: ConsoleChat, line: str) -> None:
    command, _, rest = line.partition(" ")
    if command == "/image":
        chat.attach_image(pasted_path(rest))
    elif command == "/video":
        chat.attach_video(pasted_path(rest))
    elif command == "/reset":
        chat.reset()
    elif command == "/help":
        print(HELP)
    elif command.startswith("/"):
        raise RequestError(f"There is no command {command}; /help lists the commands.")
    else:
        _show(chat.ask(line))


def pasted_path(text: str) -> Path:
    """Return the path that a text means as a terminal or a file manager pastes it.

    It may have white space or quotes around it, begin with `file://`, and have a backslash before each space.
    """
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]
    if text.startswith("file://"):
        return Path(unquote(urlsplit(text).path))
    path = Path(text)
    return path if "\\" not in text or path.exists() else Path(re.sub(r"\\(.)", r"\1", text))


def _read_line() -> str | None:
    """Return the next line without surrounding white space; None at the end of the input."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None


def _show(pieces: Iterator[str]) -> None:
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
