"""`Azion.AI.run`, the platform's binding: `answer = await Azion.AI.run(model, request)`.

If `TERNVL_BASE_URL` is set (such as http://127.0.0.1:8000/v1), the server there answers; `TERNVL_API_KEY` is its key.
Otherwise this process answers: at the first request it loads the model of `TERNVL_MODEL` (a folder or a name on the
hub; by default the embedded one), and runs the server's own application. All variables are read at every call.
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

_TIMEOUT = httpx.Timeout(None, connect=10.0)  # long answers and long queues are not failures


class Azion:
    """The platform's namespace."""

    class AI:
        """The models of the platform."""

        @staticmethod
        async def run(model: str, request: Mapping[str, Any]) -> Any:
            """Answer a Chat Completions request. Its `model` is the first argument.

            Returns the answer as a dictionary, or an AzionStream if the request has `"stream": True`. Raises AzionError
            for a failure, ConfigError for an invalid TERNVL_BASE_URL, CheckpointError for an invalid TERNVL_MODEL.
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
    """A streamed answer: an async iterator of its chunks as dictionaries, or with `bytes` of its events as bytes.

    It can be read once, in one of the two ways. Leaving the loop, calling `aclose`, leaving an `async with` block and
    dropping the stream all end the computation of the answer.
    """

    def __init__(self, exchange: AsyncGenerator[httpx.Response], response: httpx.Response) -> None:
        self._exchange = exchange  # the event loop closes it if this object is dropped
        self._pieces = _pieces(response)
        self._chunks = _chunks(self._pieces)
        self._is_closed = False

    async def __aenter__(self) -> AzionStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def __aiter__(self) -> AsyncGenerator[dict[str, Any]]:
        """Yield the chunks. Raises AzionError for a failure within the stream and for a stream that breaks off."""
        async with self:
            while (chunk := await anext(self, None)) is not None:
                yield chunk

    async def __anext__(self) -> dict[str, Any]:
        if self._is_closed:
            raise StopAsyncIteration
        try:
            return await anext(self._chunks)
        except BaseException as error:
            if self._is_closed and isinstance(error, AzionError):  # `aclose` was called meanwhile
                raise StopAsyncIteration from None
            await self.aclose()
            raise

    async def bytes(self) -> AsyncGenerator[bytes]:
        """Yield the body of a `text/event-stream` response as it arrives. A piece may end within an event.

        Raises AzionError for a stream that breaks off; a failure of the model is an event of the stream.
        """
        async with self:
            while not self._is_closed and (piece := await anext(self._pieces, None)) is not None:
                yield piece

    async def aclose(self) -> None:
        """Close the stream. An answer that has not been read to its end is stopped."""
        if not self._is_closed:
            self._is_closed = True
            await self._exchange.aclose()


class EventDecoder:
    """Decodes server-sent events from pieces of bytes, which may end within an event.

    It accepts all line ends of the standard.
    """

    def __init__(self) -> None:
        utf8 = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._newlines = io.IncrementalNewlineDecoder(utf8, translate=True)
        self._line = ""
        self._data: list[str] = []

    def decode(self, piece: bytes) -> Iterator[str]:
        """Yield the data of the events that end in this piece."""
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
        raise _failure(400, f"The request is a value of type {type(request).__name__}, but must be a mapping.")
    try:
        return json.dumps({**request, "model": model}, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise _failure(400, f"The request cannot be written as JSON: {error}.") from error


async def _client() -> httpx.AsyncClient:
    """Return a client for one request. It is not kept, because connections belong to one event loop, which may end."""
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
    raise ConfigError(f"TERNVL_BASE_URL is {text!r}, but must be an http or https URL.")


@cache
def _ssl_context() -> ssl.SSLContext:
    return httpx.create_ssl_context()


_lock = threading.Lock()
_loaded: dict[str | None, InProcessTransport] = {}


def _local(model: str | None) -> InProcessTransport:
    """Return the application of a model, which is loaded once in this process. It blocks meanwhile."""
    with _lock:
        if model not in _loaded:
            from ternvl.config import ServerConfig
            from ternvl.llm import LLM
            from ternvl.server import create_app

            _loaded[model] = InProcessTransport(create_app(LLM(model), ServerConfig()))
        return _loaded[model]


async def _exchange(client: httpx.AsyncClient, body: bytes) -> AsyncGenerator[httpx.Response]:
    """Yield the response, which stays open until this generator is closed or dropped."""
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
    """Return the body of a successful response. Raises AzionError for any other response."""
    try:
        body = json.loads(content)
    except ValueError:
        body = None
    if response.is_success and isinstance(body, dict):
        return body
    status = response.status_code
    if not response.is_success and _is_error(body):
        raise AzionError(status, cast("dict[str, Any]", body))
    message = f"The server answered with status {status}, but its body is neither an answer nor an error."
    raise _failure(status if response.is_error else 502, message)


def _is_error(body: object) -> bool:
    return isinstance(body, dict) and isinstance(body.get("error"), dict) and "message" in body["error"]


@contextmanager
def _broken_connections() -> Iterator[None]:
    """Turn errors of the connection into AzionErrors."""
    try:
        yield
    except httpx.RequestError as error:
        reason = str(error) or type(error).__name__
        raise _failure(502, f"The server could not be reached: {reason}.", code="unreachable") from error


def _failure(status: int, message: str, *, code: str | None = None) -> AzionError:
    kind = "invalid_request_error" if status == 400 else "server_error"
    return AzionError(status, {"error": {"message": message, "type": kind, "param": None, "code": code}})
