"""Talking with a model in a terminal, or through pipes."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ternvl.engine.request import Request
from ternvl.errors import RequestError, TernvlError
from ternvl.llm import LLM
from ternvl.output.detokenizer import Detokenizer
from ternvl.types import FinishReason, Prompt

HELP = """\
/image PATH   show the model an image, together with your next message
/reset        begin a new conversation
/quit         leave (so does Ctrl-D)"""


class Conversation:
    """The turns so far, and the images that go with the next one."""

    def __init__(self, llm: LLM, params: dict[str, Any]) -> None:
        """`params` are fields of `SamplingParams` other than the checkpoint's defaults."""
        self.llm = llm
        self.prompt: Prompt | None = None
        """Of the last question."""
        self.num_tokens = 0
        """Of the last answer."""
        self.finish_reason: FinishReason | None = None
        self._params = replace(llm.default_params(), **params)
        self._messages: list[dict[str, Any]] = []
        self._images: list[str] = []
        self._num_asked = 0

    def attach(self, path: Path) -> None:
        """Adds an image to the next message. Raises RequestError where the file cannot be read."""
        try:
            data = path.expanduser().read_bytes()
        except OSError as error:
            raise RequestError(f"The image {path} cannot be read: {error.strerror}.") from error
        self._images.append("data:;base64," + base64.b64encode(data).decode())

    def reset(self) -> None:
        """Forgets all turns and images."""
        self._messages.clear()
        self._images.clear()

    def ask(self, text: str) -> Iterator[str]:
        """Pieces of the answer as they come. A turn that does not come to its end is forgotten.

        Raises what `LLM.prompt` and `Engine.add` raise.
        """
        images = [{"type": "image_url", "image_url": {"url": url}} for url in self._images]
        self._images = []
        turn = {"role": "user", "content": [*images, {"type": "text", "text": text}]}
        self.prompt = self.llm.prompt([*self._messages, turn])
        answer = ""
        for piece in self._generate(self.prompt):
            answer += piece
            yield piece
        self._messages += [turn, {"role": "assistant", "content": answer}]

    def _generate(self, prompt: Prompt) -> Iterator[str]:
        engine, detokenizer = self.llm.engine, Detokenizer(self.llm.tokenizer)
        request = Request(f"console-{self._num_asked}", prompt, self._params)
        self._num_asked += 1
        self.num_tokens = 0
        engine.add(request)
        try:
            while engine.has_work:
                for output in engine.step():
                    self.num_tokens += len(output.token_ids)
                    self.finish_reason = output.finish_reason
                    yield detokenizer.decode(output.token_ids)
            yield detokenizer.flush()
        finally:
            engine.abort(request.id)


def answer(conversation: Conversation, question: str, *, as_json: bool) -> None:
    """Prints one answer: as it comes, or with its token counts as one JSON object."""
    if not as_json:
        _show(conversation.ask(question))
        return
    text = "".join(conversation.ask(question))
    prompt = conversation.prompt
    assert prompt is not None
    assert conversation.finish_reason is not None
    usage = {
        "prompt_tokens": prompt.num_tokens,
        "image_tokens": prompt.num_image_tokens,
        "completion_tokens": conversation.num_tokens,
    }
    described = {"model": conversation.llm.name, "text": text, "finish_reason": conversation.finish_reason.value}
    print(json.dumps(described | {"usage": usage}, ensure_ascii=False))


def talk(conversation: Conversation) -> None:
    """Reads messages and commands until the input ends."""
    if sys.stdin.isatty():
        import readline  # noqa: F401  # importing it gives `input` its line editing

        print(f"{conversation.llm.name} listens. /help lists commands.")
    while (line := _read_line()) is not None:
        try:
            if line == "/quit":
                return
            if line:
                _obey(conversation, line)
        except TernvlError as error:
            print(f"ternvl: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            print()


def _obey(conversation: Conversation, line: str) -> None:
    command, _, rest = line.partition(" ")
    if command == "/image":
        conversation.attach(Path(rest.strip()))
    elif command == "/reset":
        conversation.reset()
    elif command == "/help":
        print(HELP)
    elif command.startswith("/"):
        raise RequestError(f"There is no command {command}; /help lists those there are.")
    else:
        _show(conversation.ask(line))


def _read_line() -> str | None:
    """The next line without white space around it; None at the end of the input."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None


def _show(pieces: Iterator[str]) -> None:
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
