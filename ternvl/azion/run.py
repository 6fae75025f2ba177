"""`Azion.AI.run`, the platform's binding: `answer = await Azion.AI.run(model, request)`.

With `TERNVL_BASE_URL` (such as http://127.0.0.1:8000/v1) set, a server answers; `TERNVL_API_KEY` is its key. Otherwise
this process does: it loads the model that `TERNVL_MODEL` names, a folder or a name on the hub, or the embedded one, at
the first request, and asks the server's own application. All three are read at every call.
"""

from __future__ import annotations

import asyncio
import codecs
import io
import json
import os
import ssl
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from functools import cache
from typing import Any, cast

import httpx

from ternvl.azion.inprocess import InProcessTransport
from ternvl.errors import AzionError, ConfigError

__all__ = ["Azion", "AzionError", "AzionStream"]

_TIMEOUT = httpx.Timeout(None, connect=10.0)  # a long answer, or a long queue, is no failure


class Azion:
    """The platform's name space."""

    class AI:
        """Models."""

        @staticmethod
        async def run(model: str, request: Mapping[str, Any]) -> Any:
            """Answer a Chat Completions request, which needs no `model`: the first argument is.

            Returns the answer as a dictionary, or an AzionStream where the request says `"stream": True`. Raises
            AzionError where the answer is no success; ConfigError for a TERNVL_BASE_URL that is no URL, and
            CheckpointError for a TERNVL_MODEL that cannot be loaded.
            """
            body = _encoded(model, request)
            exchange = _exchange(await _client(), body)
            response = await anext(exchange)
            if response.is_success and "text/event-stream" in response.headers.get("content-type", ""):
                return AzionStream(exchange, response)
            async with aclosing(exchange):
                with _broken_connections():
                    return _answer(response, await response.aread())


class AzionStream:
    """A streamed answer: an async iterator of its chunks, as dictionaries, or through `bytes` the events themselves.

    It can be read once, in one of both ways. Leaving the loop, `aclose`, the end of an `async with`, and dropping the
    stream all end the answer where it is computed.
    """

    def __init__(self, exchange: AsyncGenerator[httpx.Response], response: httpx.Response) -> None:
        self._exchange = exchange  # closed by the event loop where this object is dropped
        self._pieces = _pieces(response)
        self._chunks = _chunks(self._pieces)
        self._is_closed = False

    async def __aenter__(self) -> AzionStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def __aiter__(self) -> AsyncGenerator[dict[str, Any]]:
        """Raises AzionError for a failure within the stream, and for a stream that breaks off."""
        async with self:
            while (chunk := await anext(self, None)) is not None:
                yield chunk

    async def __anext__(self) -> dict[str, Any]:
        if self._is_closed:
            raise StopAsyncIteration
        try:
            return await anext(self._chunks)
        except BaseException as error:
            if self._is_closed and isinstance(error, AzionError):  # `aclose`, while this was waiting
                raise StopAsyncIteration from None
            await self.aclose()
            raise

    async def bytes(self) -> AsyncGenerator[bytes]:
        """The server-sent events as they come, cut anywhere: the body of a `text/event-stream` response.

        Raises AzionError for a stream that breaks off; a failure of the model is an event like the others.
        """
        async with self:
            while not self._is_closed and (piece := await anext(self._pieces, None)) is not None:
                yield piece

    async def aclose(self) -> None:
        """End the answer, whether it has been read to its end or not."""
        if not self._is_closed:
            self._is_closed = True
            await self._exchange.aclose()


class EventDecoder:
    """Server-sent events out of bytes that are cut anywhere, with any line ends the standard allows."""

    def __init__(self) -> None:
        utf8 = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._newlines = io.IncrementalNewlineDecoder(utf8, translate=True)
        self._line = ""
        self._data: list[str] = []

    def decode(self, piece: bytes) -> Iterator[str]:
        """The data of the events that end in this piece."""
        *lines, self._line = (self._line + self._newlines.decode(piece)).split("\n")
        for line in lines:
            field, _, value = line.partition(":")
            if field == "data":
                self._data.append(value.removeprefix(" "))
            elif not line and self._data:
                yield "\n".join(self._data)
                self._data = []


def _encoded(model: str, request: Mapping[str, Any]) -> bytes:
    if not isinstance(request, Mapping):
        raise _failure(400, f"The request is a value of type {type(request).__name__}; it must be a mapping.")
    try:
        return json.dumps({**request, "model": model}, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise _failure(400, f"The request cannot be written as JSON: {error}.") from error


async def _client() -> httpx.AsyncClient:
    """A client for one request: connections belong to one event loop, and nobody says when that ends."""
    base_url = os.environ.get("TERNVL_BASE_URL")
    if not base_url:
        transport = await asyncio.to_thread(_local, os.environ.get("TERNVL_MODEL") or None)
        return httpx.AsyncClient(base_url="http://ternvl/v1/", transport=transport, timeout=_TIMEOUT)
    key = os.environ.get("TERNVL_API_KEY")
    headers = {b"Authorization": b"Bearer " + key.encode()} if key else {}
    return httpx.AsyncClient(base_url=_url(base_url), headers=headers, verify=_ssl_context(), timeout=_TIMEOUT)


def _url(text: str) -> httpx.URL:
    with suppress(httpx.InvalidURL):
        url = httpx.URL(text)
        if url.scheme in ("http", "https") and url.host:
            return url
    raise ConfigError(f"TERNVL_BASE_URL is {text!r}, which is no http or https URL.")


@cache
def _ssl_context() -> ssl.SSLContext:
    return httpx.create_ssl_context()


_lock = threading.Lock()
_loaded: dict[str | None, InProcessTransport] = {}


def _local(model: str | None) -> InProcessTransport:
    """The application of a model, loaded once in this process. Blocks."""
    with _lock:
        if model not in _loaded:
            from ternvl.config import ServerConfig
            from ternvl.llm import LLM
            from ternvl.server import create_app

            _loaded[model] = InProcessTransport(create_app(LLM(model), ServerConfig()))
        return _loaded[model]


async def _exchange(client: httpx.AsyncClient, body: bytes) -> AsyncGenerator[httpx.Response]:
    """The response, once, open until the generator is closed; an event loop also closes generators that are dropped."""
    with _broken_connections():
        async with (
            client,
            client.stream(
                "POST", "chat/completions", content=body, headers={"Content-Type": "application/json"}
            ) as response,
        ):
            yield response


async def _pieces(response: httpx.Response) -> AsyncGenerator[bytes]:
    with _broken_connections():
        async for piece in response.aiter_bytes():
            if piece:
                yield piece


async def _chunks(pieces: AsyncIterator[bytes]) -> AsyncGenerator[dict[str, Any]]:
    decoder = EventDecoder()
    async for piece in pieces:
        for data in decoder.decode(piece):
            if data == "[DONE]":
                return
            yield _chunk(data)
    raise _failure(502, "The stream ended before its answer did.", code="broken_stream")


def _chunk(data: str) -> dict[str, Any]:
    try:
        chunk = json.loads(data)
    except ValueError:
        raise _failure(502, "The stream holds an event that is not JSON.", code="broken_stream") from None
    if _is_error(chunk):
        raise AzionError(500, chunk)
    return cast("dict[str, Any]", chunk)


def _answer(response: httpx.Response, content: bytes) -> dict[str, Any]:
    """The body of a success. Raises AzionError for everything else."""
    try:
        body = json.loads(content)
    except ValueError:
        body = None
    if response.is_success and isinstance(body, dict):
        return body
    if not response.is_success and _is_error(body):
        raise AzionError(response.status_code, cast("dict[str, Any]", body))
    status = response.status_code if response.is_error else 502
    raise _failure(status, f"The server answered with status {response.status_code} and no body of the protocol.")


def _is_error(body: object) -> bool:
    return isinstance(body, dict) and isinstance(body.get("error"), dict) and "message" in body["error"]


@contextmanager
def _broken_connections() -> Iterator[None]:
    """What goes wrong on the way as an AzionError."""
    try:
        yield
    except httpx.RequestError as error:
        reason = str(error) or type(error).__name__
        raise _failure(502, f"The server could not be reached: {reason}.", code="unreachable") from error


def _failure(status: int, message: str, *, code: str | None = None) -> AzionError:
    kind = "invalid_request_error" if status == 400 else "server_error"
    return AzionError(status, {"error": {"message": message, "type": kind, "param": None, "code": code}})
