"""One question and its answer: what `ternvl run` prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from ternvl.cli.chat.conversation import ConsoleChat
from ternvl.errors import TernvlError
from ternvl.types import FinishReason

OUTPUTS = ("text", "json")


def answer(chat: ConsoleChat, question: str, *, as_json: bool, streams: bool) -> None:
    """Print an answer: its text or a JSON object with its token counts, piece by piece if it `streams`.

    A stream in JSON is one object `{"delta": ...}` a line, and then the object of the whole answer. Raises what
    `LLM.stream` raises.
    """
    with closing(chat.ask(question)) as pieces:
        shown = _shown(pieces, as_json=as_json) if streams else list(pieces)
    assert chat.last is not None
    if as_json:
        print(json.dumps(described(chat), ensure_ascii=False))
    elif not streams:
        print("".join(shown))
    else:
        print()


def check_whole(chat: ConsoleChat) -> None:
    """Raise TernvlError if the last answer was cut, so that it does not have its form."""
    assert chat.last is not None
    completion = chat.last.outputs[0]
    if completion.finish_reason is FinishReason.LENGTH:
        count = len(completion.token_ids)
        raise TernvlError(f"The answer was cut after {count} tokens and is not whole JSON; raise --max-tokens.")


def described(chat: ConsoleChat) -> dict[str, Any]:
    """Return the last answer with its token counts."""
    assert chat.last is not None
    prompt, completion = chat.last.prompt, chat.last.outputs[0]
    usage = {
        "prompt_tokens": prompt.num_tokens,
        "image_tokens": prompt.num_image_tokens,
        "completion_tokens": len(completion.token_ids),
    }
    found = {"model": chat.llm.name, "text": completion.text, "finish_reason": completion.finish_reason.value}
    if completion.reasoning:
        found["reasoning"] = completion.reasoning
    return found | {"usage": usage}


def _shown(pieces: Iterator[str], *, as_json: bool) -> list[str]:
    for piece in pieces:
        print(json.dumps({"delta": piece}, ensure_ascii=False) + "\n" if as_json else piece, end="", flush=True)
    return []


def read_question() -> str:
    """Return the question on the standard input. Raises TernvlError if it is no text."""
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise TernvlError("The question on the standard input is not UTF-8.") from error
