"""The lock file: what the answers of a model depend on, and answers to compare with.

It is JSON. Its first key, `digest`, is the SHA-256 of all bytes after its own line, so that any change is noticed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ternvl.errors import LockError
from ternvl.types import FileState

FORMAT = 1
"""The version of the file's layout. Files of other versions are not read."""
_HEAD = re.compile(rb'\{\n "digest": "([0-9a-f]{64})",\n')
_WIDTH = 120


@dataclass(frozen=True, slots=True)
class RecordedAnswer:
    """One answer of a model on one instruction set."""

    token_ids: tuple[int, ...]
    logprobs: tuple[str, ...]
    """The log probabilities of the tokens, as `float.hex` writes them."""
    text: str
    tool_calls: tuple[tuple[str, str], ...]
    """The name and the arguments of each call."""
    finish_reason: str
    torch: str
    """The vector instructions that torch used, and the maker of the CPU."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """One request with its answers."""

    name: str
    request: Mapping[str, Any]
    """`messages`, `tools`, `json_schema`, `adapter` and fields of `SamplingParams`."""
    prompt_token_ids: tuple[int, ...]
    images: tuple[str, ...]
    """The digest of each image's tiles."""
    answers: Mapping[str, RecordedAnswer]
    """By instruction set."""


@dataclass(frozen=True, slots=True)
class Lock:
    """What a lock file says."""

    model: str
    ternvl: str
    """The version of ternvl that made the lock."""
    packages: Mapping[str, str]
    """The versions of Python and of the packages that ternvl uses."""
    files: Mapping[str, FileState]
    adapters: Mapping[str, Mapping[str, FileState]]
    settings: Mapping[str, Any]
    """The settings that change answers (`settings.py`)."""
    quantized: FileState | None = None
    """The converted file of a quantised model."""
    transcripts: tuple[Transcript, ...] = field(default=())

    @property
    def instruction_sets(self) -> tuple[str, ...]:
        """The instruction sets for which it has answers."""
        return tuple(self.transcripts[0].answers) if self.transcripts else ()

    def content(self) -> bytes:
        """Return the lock as the bytes of its file."""
        text = _text({"format": FORMAT, **asdict(self)})[2:]  # without the brace and its line end
        digest = hashlib.sha256(text.encode()).hexdigest()
        return f'{{\n "digest": "{digest}",\n{text}'.encode()


def read(path: Path) -> Lock:
    """Read a lock file. Raises LockError if it is missing, changed, or of another format."""
    try:
        content = path.read_bytes()
        _check_digest(path, content)
        return _lock(json.loads(content))
    except OSError as error:
        raise LockError(f"The lock {path} cannot be read: {error.strerror or error}.") from error
    except (KeyError, TypeError, ValueError) as error:
        raise LockError(f"The lock {path} is not of format {FORMAT}: {type(error).__name__}: {error}.") from error


def _check_digest(path: Path, content: bytes) -> None:
    head = _HEAD.match(content)
    if head is None:
        raise LockError(f"{path} is not a lock file of ternvl, or its beginning has been changed.")
    found, expected = hashlib.sha256(content[head.end() :]).hexdigest(), head[1].decode()
    if found != expected:
        reason = f"expected SHA-256 {expected}, found {found}"
        raise LockError(f"The lock {path} has been changed since it was made: {reason}.", (reason,))


def _lock(document: dict[str, Any]) -> Lock:
    if document.pop("format") != FORMAT:
        raise ValueError("its format is another one")
    del document["digest"]
    document["files"] = _states(document["files"])
    document["adapters"] = {name: _states(files) for name, files in document["adapters"].items()}
    document["quantized"] = document["quantized"] and FileState(**document["quantized"])
    document["transcripts"] = tuple(_transcript(each) for each in document["transcripts"])
    return Lock(**document)


def _states(files: dict[str, Any]) -> dict[str, FileState]:
    return {name: FileState(**state) for name, state in files.items()}


def _transcript(value: dict[str, Any]) -> Transcript:
    answers = {name: _answer(answer) for name, answer in value.pop("answers").items()}
    for name in ("prompt_token_ids", "images"):
        value[name] = tuple(value[name])
    return Transcript(**value, answers=answers)


def _answer(value: dict[str, Any]) -> RecordedAnswer:
    for name in ("token_ids", "logprobs"):
        value[name] = tuple(value[name])
    return RecordedAnswer(**value | {"tool_calls": tuple((name, text) for name, text in value["tool_calls"])})


def _text(value: Any, indent: int = 0) -> str:
    """Return a value as JSON, in which a line holds as many elements of a list as fit."""
    inner = " " * (indent + 1)
    if isinstance(value, Mapping) and value:
        items = [f"{inner}{json.dumps(key)}: {_text(item, indent + 1)}" for key, item in value.items()]
        return "{\n" + ",\n".join(items) + "\n" + " " * indent + "}" + "\n" * (indent == 0)
    if isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        items = [inner + _text(item, indent + 1) for item in value]
        return "[\n" + ",\n".join(items) + "\n" + " " * indent + "]"
    if isinstance(value, list | tuple) and value:
        return _wrapped([json.dumps(item, ensure_ascii=False) for item in value], inner)
    return json.dumps(value, ensure_ascii=False)


def _wrapped(items: list[str], inner: str) -> str:
    """Return a list of scalars on as few lines as have room for it."""
    lines, line = [], ""
    for item in items:
        if line and len(inner) + len(line) + len(item) + len(", ,") > _WIDTH:
            lines.append(line)
            line = ""
        line += f"{', ' if line else ''}{item}"
    lines.append(line)
    return f"[{lines[0]}]" if len(lines) == 1 else f"[\n{inner}" + f",\n{inner}".join(lines) + f"\n{inner[1:]}]"
