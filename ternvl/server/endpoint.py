"""Reads requests and sends answers, whole or as a stream: the code that all endpoints share."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from ternvl.server.errors import ClientGone, HTTPError
from ternvl.server.guard.deprecation import note_fields
from ternvl.server.guard.limits import read_json
from ternvl.server.log.request_id import in_words
from ternvl.server.long_json import json_response
from ternvl.server.schema.fields import ignored_header, parse
from ternvl.server.schema.sampling import TextRequest
from ternvl.server.schema.types import Schema
from ternvl.server.serving import Serving
from ternvl.server.sse import EventStream, Form, event, until_disconnect

logger = logging.getLogger("ternvl.server")

S = TypeVar("S", bound=Schema)
T = TypeVar("T")

IGNORED_FIELDS = "x-ternvl-ignored-fields"


def serving_of(request: Request) -> Serving:
    """Return the objects that all endpoints of the application share."""
    serving: Serving = request.app.state.serving
    return serving


async def read(
    request: Request, schema: type[S], protocol: str, *, generates: bool = False
) -> tuple[S, dict[str, str]]:
    """Return the body of a request, and the headers for its answer, which list fields that have no effect.

    `protocol` selects the rows of `KNOWN_FIELDS`. If it `generates` tokens and the queue has no room, it is refused
    before its body is read: a server with too much work has no time to read what it refuses. Raises the errors of
    `Service.check_room`, `read_json` and `parse`.
    """
    if generates:
        serving_of(request).service.check_room(1)
    config = serving_of(request).config
    body = await read_json(request, config)
    note_fields(request.scope, body)
    value, ignored = await asyncio.to_thread(parse, schema, body, protocol=protocol, strict=config.strict)
    headers = value.answer_headers if isinstance(value, TextRequest) else {}
    if ignored:
        headers[IGNORED_FIELDS] = ignored_header(ignored)
        logger.warning("Fields of a request are unknown or have no effect: %s%s", headers[IGNORED_FIELDS], in_words())
    return value, headers


async def send(
    request: Request,
    values: AsyncGenerator[T],
    *,
    fold: Callable[[AsyncIterable[T]], Awaitable[Any]],
    form: Form[T] | None,
    headers: Mapping[str, str],
) -> Response:
    """Return the answer: a stream of `values` in `form` or, if `form` is None, the JSON value that `fold` returns.

    Nothing is sent before the first value, so that a failure before it has an error status.
    """
    try:
        if form is None:
            whole = await until_disconnect(request.receive, _folded(values, fold))
            return await json_response(whole, headers)
        first = await until_disconnect(request.receive, _first(values))
    except ClientGone:
        return Response(status_code=499)
    return EventStream(first, values, form, headers)


async def _folded(values: AsyncGenerator[T], fold: Callable[[AsyncIterable[T]], Awaitable[Any]]) -> Any:
    async with aclosing(values):
        return await fold(values)


async def _first(values: AsyncGenerator[T]) -> T:
    return await anext(values)


def openai_form(*, include_usage: bool) -> Form[dict[str, Any]]:
    """Return the form of OpenAI's streams.

    With `include_usage` each chunk has the key `usage`, which is null except in the last chunk. Without it, the last
    chunk, which has only the usage, is not sent.
    """

    def shown(chunk: dict[str, Any]) -> bytes:
        if include_usage:
            return event({"usage": None, **chunk})
        return event(chunk) if chunk["choices"] else b""

    return Form(shown, _openai_failure, b"data: [DONE]\n\n")


def _openai_failure(error: HTTPError) -> bytes:
    return event(error.body)
