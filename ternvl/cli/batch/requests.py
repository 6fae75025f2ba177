"""The file of requests: one line of JSON for each, with `custom_id`, `method`, `url` and `body`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

from ternvl import exact_json
from ternvl.errors import ConfigError
from ternvl.files import open_regular

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
"""The endpoints that may be asked: those of the server that answer with text."""
INVALID, DUPLICATE = "invalid_request_line", "duplicate_custom_id"
"""The codes of lines that are not asked."""


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One line that is not empty."""

    number: int
    """From 1 on, as editors count."""
    offset: int
    """Where the line begins in the file, in bytes."""
    id: str
    """Follows from the line's number and content, so that its answer is recognised when a run is continued."""
    custom_id: str | None
    problem: str | None = None
    """Why it cannot be asked."""
    code: str = INVALID


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """What a line asks."""

    url: str
    body: bytes
    """JSON, in which every number has the digits of the line."""


class RequestFile:
    """The lines of a file. Bodies stay in the file until they are asked, because they may hold large images."""

    def __init__(self, path: Path) -> None:
        """Read and check all lines. Raises ConfigError for an unusable file."""
        self.path = path
        try:
            self._file: IO[bytes] = open_regular(path)
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be read: {error.strerror}. Name a file with one request per line."
            ) from error
        self.lines = tuple(self._lines())
        if not self.lines:
            self._file.close()
            raise ConfigError(f"{path} has no requests; write one JSON object per line, as docs/cli.md shows.")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def request(self, line: BatchLine) -> BatchRequest:
        """Return what a line without a problem asks."""
        return _request(self._file, line.offset)

    def _lines(self) -> Iterator[BatchLine]:
        first: dict[str, int] = {}
        offset = 0
        for number, text in enumerate(self._file, start=1):
            if text.strip():
                yield self._line(number, offset, text, first)
            offset += len(text)

    def _line(self, number: int, offset: int, text: bytes, first: dict[str, int]) -> BatchLine:
        """Return a line; `first` has the number of the first line of each custom_id, and gets this one's."""
        digest = hashlib.sha256(b"%d:%s" % (number, text.strip())).hexdigest()
        custom_id, problem, code = None, None, INVALID
        try:
            values = _object(text)
            custom_id = _custom_id(values)
            if custom_id in first:
                code, problem = DUPLICATE, f"custom_id {custom_id!r} is also that of line {first[custom_id]}"
            first.setdefault(custom_id, number)
            problem = problem or _problem(values)
        except ValueError as error:
            problem = str(error)
        return BatchLine(number, offset, f"batch_req_{digest[:24]}", custom_id, problem, code)


def read_request(path: Path, offset: int) -> BatchRequest:
    """Return what the line of a file asks that begins at an offset and has no problem. Raises OSError."""
    with open_regular(path) as file:
        return _request(file, offset)


def _request(file: IO[bytes], offset: int) -> BatchRequest:
    file.seek(offset)
    values = _object(file.readline())
    return BatchRequest(values["url"], exact_json.dumps(values["body"]).encode())


def _problem(values: dict[str, Any]) -> str | None:
    if values.get("method") != "POST":
        return f"method is {values.get('method')!r}, but must be 'POST'"
    if values.get("url") not in URLS:
        return f"url is {values.get('url')!r}, but must be one of {', '.join(URLS)}"
    body = values.get("body")
    if not isinstance(body, dict):
        return f"body is {_kind(body)}, but must be a JSON object"
    return "body.stream is set, but the answers of a batch are whole" if body.get("stream") else None


def _object(text: bytes) -> dict[str, Any]:
    """Return the JSON object of a line. Raises ValueError for anything else, in words."""
    try:
        values = exact_json.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError("the line is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the line is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"the line is {_kind(values)}, but must be a JSON object")
    return values


def _custom_id(values: dict[str, Any]) -> str:
    custom_id = values.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        raise ValueError("custom_id is missing" if custom_id is None else "custom_id must be a text that is not empty")
    return custom_id


def _kind(value: object) -> str:
    return {"NoneType": "missing", "list": "an array", "str": "a text", "dict": "an object"}.get(
        type(value).__name__, f"of the type {type(value).__name__}"
    )
