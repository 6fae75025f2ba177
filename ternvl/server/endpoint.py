"""What the endpoints that answer have in common: reading a request, and sending its answer whole or in pieces."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ternvl.server.errors import HTTPError
from ternvl.server.guard.limits import read_json
from ternvl.server.schema.fields import SERVED_VALUES, ignored_header, parse
from ternvl.server.schema.types import Schema
from ternvl.server.serving import Serving
from ternvl.server.sse import ClientGone, EventStream, Form, event, until_disconnect

logger = logging.getLogger("ternvl.server")

S = TypeVar("S", bound=Schema)
T = TypeVar("T")

IGNORED_FIELDS = "x-ternvl-ignored-fields"

Values = tuple[Any, ...]


def serving_of(request: Request) -> Serving:
    """What the application serves."""
    serving: Serving = request.app.state.serving
    return serving


async def read(
    request: Request, schema: type[S], served_values: Mapping[str, Values] = SERVED_VALUES
) -> tuple[S, dict[str, str]]:
    """The body of a request, and the headers that its answer must have. Raises what `read_json` and `parse` raise."""
    config = serving_of(request).config
    body = await read_json(request, config)
    value, ignored = await asyncio.to_thread(parse, schema, body, strict=config.strict, served_values=served_values)
    headers = {IGNORED_FIELDS: ignored_header(ignored)} if ignored else {}
    if ignored:
        logger.warning("ignored unknown fields: %s", headers[IGNORED_FIELDS])
    return value, headers


async def send(
    request: Request,
    values: AsyncGenerator[T],
    *,
    fold: Callable[[AsyncIterable[T]], Awaitable[Any]],
    form: Form[T] | None,
    headers: Mapping[str, str],
) -> Response:
    """The answer that `values` are the pieces of: as a stream in a form, or without one folded into one JSON value.

    Nothing is sent before the first value, so that an early failure has a status of its own.
    """
    try:
        if form is None:
            return JSONResponse(await until_disconnect(request.receive, _folded(values, fold)), headers=dict(headers))
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
    """Chunks as OpenAI's clients get them: with `include_usage` each has the key and the last one the value; without it
    the last one is not sent."""

    def shown(chunk: dict[str, Any]) -> bytes:
        if include_usage:
            return event({"usage": None, **chunk})
        return event(chunk) if chunk["choices"] else b""

    return Form(shown, _openai_failure, b"data: [DONE]\n\n")


def _openai_failure(error: HTTPError) -> bytes:
    return event(error.body)
