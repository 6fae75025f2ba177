"""A conversation with a model: its turns, what is attached to the next message, and its file."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ternvl.errors import RequestError
from ternvl.llm import LLM, Delta, RequestOutput
from ternvl.prompt.messages import parse_messages


class ConsoleChat:
    """A conversation with a model: the turns so far, and the images and videos of the next message."""

    def __init__(
        self, llm: LLM, params: dict[str, Any], *, system: str | None = None, adapter: str | None = None
    ) -> None:
        """`params` are the fields of `SamplingParams` in which the answers differ from the checkpoint's defaults.

        `system` replaces the checkpoint's system message; `adapter` names a LoRA adapter that is loaded.
        """
        self.llm = llm
        self.system = system
        """The system message; None for the checkpoint's own."""
        self.media: list[dict[str, Any]] = []
        """The images and videos of the next message."""
        self.last: RequestOutput | None = None
        """The prompt of the last question, with its answer, if it came to its end."""
        self._adapter = adapter
        self._params = replace(llm.default_params(), **params)
        self._messages: list[dict[str, Any]] = []
        self._own: set[Path] = set()

    @property
    def has_form(self) -> bool:
        """Whether the answers have the form of a JSON Schema, and so are no Markdown."""
        return self._params.grammar is not None

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation in OpenAI's form, with the system message if it has one of its own."""
        return [*([] if self.system is None else [{"role": "system", "content": self.system}]), *self._messages]

    def clear(self) -> None:
        """Forget all turns, images and videos. The system message stays."""
        self._messages.clear()
        self.media.clear()

    def ask(self, text: str) -> Generator[str]:
        """Yield pieces of the answer as they are generated: its reasoning, if any, then an empty line, then its text.

        Of an answer that is not read to its end, what was said stays in the conversation. If nothing was said, the
        message is forgotten, and its images and videos wait for the next one. Raises what `LLM.stream` raises.
        """
        turn = {"role": "user", "content": [*self.media, {"type": "text", "text": text}]}
        yield from self._answer(turn)

    def retry(self) -> Generator[str]:
        """Answer the last message again, and yield the pieces. Raises RequestError if there is none."""
        turns = [index for index, message in enumerate(self._messages) if message["role"] == "user"]
        if not turns:
            raise RequestError("There is no message to answer again yet.")
        turn, kept = self._messages[turns[-1]], self._messages[turns[-1] :]
        del self._messages[turns[-1] :]
        waiting, before = self.media, len(self._messages)
        self.media = []
        try:
            yield from self._answer(turn)
        finally:
            self.media = waiting
            if len(self._messages) == before:
                self._messages += kept

    def _answer(self, turn: dict[str, Any]) -> Generator[str]:
        said, self.last = "", None
        try:
            with self.llm.stream([*self.messages, turn], self._params, adapter=self._adapter) as deltas:
                for piece, text in _pieces(deltas):
                    said += text
                    yield piece
                self.last = deltas.output
                said = self.last.text
        finally:
            if said or self.last is not None:
                self._messages += [turn, {"role": "assistant", "content": said}]
                self.media = []

    def save(self, path: Path) -> None:
        """Write the conversation to a file, as JSON. Raises RequestError if that is not possible.

        A file is replaced only if this conversation was written to it or read from it.
        """
        described = {"model": self.llm.name, "messages": self.messages}
        text = json.dumps(described, ensure_ascii=False, indent=1, default=os.fspath)
        try:
            path = path.expanduser()
            if path.exists() and path.resolve() not in self._own:
                raise FileExistsError(0, "it exists already; choose another name")
            _write(path, text.encode("utf-8", "backslashreplace"))
        except (OSError, ValueError, RuntimeError) as error:
            raise RequestError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}.") from error
        self._own.add(path.resolve())

    def load(self, path: Path) -> int:
        """Replace the conversation by that of a file, and return its number of messages.

        Raises RequestError for a file that cannot be read or holds no conversation; nothing has changed then.
        """
        try:
            path = path.expanduser()
            messages = [_with_paths(each) for each in json.loads(path.read_text(encoding="utf-8"))["messages"]]
            parse_messages(messages)
        except OSError as error:
            raise RequestError(f"{path} cannot be read: {error.strerror}.") from error
        except (ValueError, TypeError, KeyError, RecursionError, RuntimeError, RequestError) as error:
            raise RequestError(
                f"{path} holds no conversation, as /save writes it: {str(error).rstrip('.')}."
            ) from error
        has_system = messages[0]["role"] == "system" and isinstance(messages[0]["content"], str)
        self.system = messages[0]["content"] if has_system else None
        self._messages = messages[has_system:]
        self.media.clear()
        self._own.add(path.resolve())
        return len(messages)


def _write(path: Path, content: bytes) -> None:
    """Write a file as a whole, or leave what was there."""
    partial = path.with_name(path.name + ".part")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError:
        with suppress(OSError):
            partial.unlink()
        raise


def _with_paths(message: Any) -> Any:
    """Return a message whose videos are paths, as they were when the message was written."""
    if not isinstance(message, dict) or not isinstance(message.get("content"), list):
        return message
    return message | {"content": [_with_path(part) for part in message["content"]]}


def _with_path(part: Any) -> Any:
    is_path = isinstance(part, dict) and part.get("type") == "video" and str(part.get("video")).startswith("/")
    return part | {"video": Path(part["video"])} if is_path else part


def _pieces(deltas: Iterable[Delta]) -> Iterator[tuple[str, str]]:
    """Yield reasoning and text, with an empty line between them, and beside each piece the text alone."""
    reasoning = ""
    for delta in deltas:
        reasoning += delta.reasoning
        gap = ""
        if reasoning and delta.text:
            num_newlines = len(reasoning) - len(reasoning.rstrip("\n"))
            reasoning, gap = "", "\n" * (2 - num_newlines)
        yield delta.reasoning + gap + delta.text, delta.text
