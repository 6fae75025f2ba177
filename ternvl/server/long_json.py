"""JSON answers of any size, encoded without stopping the event loop.

Encoding a value holds Python's lock until it is done: half a second for the log probabilities of a long prompt. So
values are encoded on a thread, in pieces, and between two pieces other threads may have the lock.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from starlette.responses import Response

_DEPTH = 5
"""How deep a value is taken apart: to the log probabilities of one token."""

_whole = partial(json.dumps, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


async def json_response(value: Any, headers: Mapping[str, str] | None = None) -> Response:
    """Return the response that has a value as its body."""
    body = await asyncio.to_thread(encode, value)
    return Response(body, headers=None if headers is None else dict(headers), media_type="application/json")


def encode(value: Any) -> bytes:
    """Return a value as JSON, without blanks, in UTF-8. Raises ValueError for numbers that JSON does not have."""
    return _encode(value, _DEPTH).encode()


def _encode(value: Any, depth: int) -> str:
    if depth and isinstance(value, dict):
        members = (f"{_whole(str(name))}:{_encode(each, depth - 1)}" for name, each in value.items())
        return f"{{{','.join(members)}}}"
    if depth and isinstance(value, list | tuple):
        return f"[{','.join([_encode(each, depth - 1) for each in value])}]"
    return _whole(value)
