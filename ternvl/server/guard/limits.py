"""Reads the JSON body of a request within limits on its type, size, time and depth."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any, NoReturn

from starlette.requests import ClientDisconnect, Request

from ternvl.config import ServerConfig
from ternvl.errors import RequestError
from ternvl.exact_json import parse_float
from ternvl.server.errors import HTTPError

MAX_DEPTH = 64
"""The most levels of arrays and objects in a JSON body."""

MAX_VALUES = 1_000_000
"""The most commas in a JSON body: reading millions of values would keep Python's lock for seconds."""

MAX_BRACKETS = 50_000
"""The most objects and arrays of a JSON body, those within strings included: checking each keeps the lock, too. A
context of 32,768 tokens has no room for the text of so many."""

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


async def read_json(request: Request, config: ServerConfig) -> Any:
    """Return the decoded JSON body of a request.

    Raises HTTPError 415 for another content type, 413 for more than `max_body_bytes`, 408 past `body_timeout` and 400
    if the connection closes, and the errors of `decode_json`.
    """
    check_content_type(request)
    try:
        async with asyncio.timeout(config.body_timeout):
            chunks = await _read(request, config.max_body_bytes)
    except TimeoutError:
        raise HTTPError(408, f"The request body did not arrive within {config.body_timeout:g} seconds.") from None
    except ClientDisconnect:
        raise HTTPError(400, "The connection closed before the request body was complete.") from None
    return await asyncio.to_thread(_decode_chunks, chunks)


def check_content_type(request: Request) -> None:
    """Raise HTTPError 415 unless the Content-Type is application/json and the body is not compressed.

    This keeps out web pages of other origins, because a browser sends this type only after a preflight request.
    """
    content_type = request.headers.get("content-type", "")
    media_type = content_type.split(";")[0].strip().lower()
    if media_type != "application/json":
        given = f"is {content_type!r}" if content_type else "is missing"
        raise HTTPError(415, f"The Content-Type header {given}; it must be application/json.")
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise HTTPError(415, f"The Content-Encoding {encoding!r} is not supported; send the body uncompressed.")


async def _read(request: Request, limit: int) -> list[bytes]:
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        _too_large(limit)
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            _too_large(limit)
        chunks.append(chunk)
    return chunks


def _decode_chunks(chunks: list[bytes]) -> Any:
    """Decode a body that arrived in pieces. Where memory is short, joining them alone takes a tenth of a second."""
    return decode_json(b"".join(chunks))


def _too_large(limit: int) -> NoReturn:
    message = f"The request body is larger than the {limit} bytes that this server accepts."
    raise HTTPError(413, message, code="request_too_large", headers={"Connection": "close"})


def decode_json(body: bytes) -> Any:
    """Return the JSON value of a body, with the digits of numbers that no double equals.

    Raises RequestError for invalid UTF-8, invalid JSON, NaN and Infinity, unpaired surrogates, more than MAX_DEPTH
    levels, and too many values, objects or arrays.
    """
    if body.count(b",") > MAX_VALUES:
        raise RequestError(f"The request body has more than {MAX_VALUES} values.")
    if body.count(b"{") + body.count(b"[") > MAX_BRACKETS:
        raise RequestError(f"The request body has more than {MAX_BRACKETS} opening brackets of objects and arrays.")
    try:
        value = json.loads(body.decode("utf-8"), parse_float=parse_float, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise RequestError(f"The request body is not UTF-8: byte {error.start} is invalid.") from None
    except json.JSONDecodeError as error:
        position = f"line {error.lineno}, column {error.colno}"
        raise RequestError(f"The request body is not JSON: {error.msg} ({position}).") from None
    except RecursionError:
        raise RequestError(f"The JSON is nested deeper than {MAX_DEPTH} levels.") from None
    except ValueError:
        raise RequestError("The request body is not JSON: a number has too many digits.") from None
    _check_depth(value)
    if _SURROGATE.search(body):
        _check_surrogates(value)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise RequestError(f"The request body is not JSON: {name} is not a number in JSON.")


def _check_surrogates(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise RequestError(
            "The JSON contains half of a surrogate pair (such as \\ud800), which is not a character."
        ) from None


def _check_depth(value: Any) -> None:
    if nests_deeper(value, MAX_DEPTH):
        raise RequestError(f"The JSON is nested deeper than {MAX_DEPTH} levels.")


def nests_deeper(value: Any, depth: int) -> bool:
    """Return whether a JSON value, an array or an object, has more than `depth` levels of arrays and objects."""
    level = [value]
    for _ in range(depth):
        level = [item for parent in level for item in _items(parent) if isinstance(item, list | dict)]
        if not level:
            return False
    return True


def _items(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
