"""A transport of httpx that calls an ASGI application in this process, without a network.

The application runs on a thread of its own with one event loop, which its callers' threads and loops share. Unlike
httpx's own `ASGITransport`, which collects a whole answer before it returns the first byte, it streams.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, MutableMapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import httpx

logger = logging.getLogger(__name__)

_Message = MutableMapping[str, Any]


class InProcessTransport(httpx.AsyncBaseTransport):
    """Runs one application until `close` or the interpreter's exit. Threads and event loops may share it."""

    def __init__(self, app: Any) -> None:
        """Start `app`, a Starlette application. Raises the errors of its start-up."""
        self._app = app
        self._running: dict[asyncio.Task[None], _Exchange] = {}  # used on the application's loop only
        self._stop = asyncio.Event()
        self._loop: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=self._work, name="ternvl-app", daemon=True)
        self._thread.start()
        self._loop.result()
        # `atexit` would be too late: executors refuse work by then, and the shut-down needs one. An engine that still
        # computes while the interpreter exits would crash it.
        threading._register_atexit(self.close)  # type: ignore[attr-defined]

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Return the application's response, whose body is a stream. Closing it disconnects the client.

        Raises httpx.ConnectError if the application has been closed.
        """
        loop = self._loop.result()
        exchange = _Exchange(request, await request.aread(), loop)
        try:
            loop.call_soon_threadsafe(self._begin, exchange)
        except RuntimeError:
            raise httpx.ConnectError("the application has been closed", request=request) from None
        try:
            start = await exchange.start()
        except BaseException:
            await exchange.aclose()
            raise
        return httpx.Response(start["status"], headers=start.get("headers", []), stream=exchange)

    def close(self) -> None:
        """End the requests that still run, shut the application down and wait until it has ended.

        It blocks, and may be called more than once.
        """
        if self._thread.is_alive():
            self._loop.result().call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def _work(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:
            if self._loop.done():
                logger.exception("The application failed during its shut-down.")
            else:
                self._loop.set_exception(error)

    async def _serve(self) -> None:
        async with self._app.router.lifespan_context(self._app):
            self._loop.set_result(asyncio.get_running_loop())
            await self._stop.wait()
            for exchange in self._running.values():
                exchange.gone.set()
            await asyncio.gather(*self._running)

    def _begin(self, exchange: _Exchange) -> None:
        task = asyncio.create_task(exchange.answer(self._app))
        self._running[task] = exchange
        task.add_done_callback(self._running.pop)


class _Exchange(httpx.AsyncByteStream):
    """One request and its answer, between the caller's event loop and the application's."""

    def __init__(self, request: httpx.Request, body: bytes, app_loop: asyncio.AbstractEventLoop) -> None:
        self.gone = asyncio.Event()
        """Set on the application's loop once the caller has left."""
        self._request = request
        self._body: bytes | None = body
        self._caller = asyncio.get_running_loop()
        self._app_loop = app_loop
        # Unbounded, because the engine does not wait for readers either, and one answer is small.
        self._messages: asyncio.Queue[_Message | None] = asyncio.Queue()

    async def answer(self, app: Any) -> None:
        """Run the application on this request, on the application's event loop."""
        try:
            await app(self._scope(), self._receive, self._send)
        except Exception:
            logger.exception("The application failed on a request.")
        finally:
            self._put(None)

    def _scope(self) -> dict[str, Any]:
        url = self._request.url
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": self._request.method,
            "scheme": url.scheme,
            "path": url.path,
            "raw_path": url.raw_path.partition(b"?")[0],
            "query_string": url.query,
            "root_path": "",
            "headers": [(key.lower(), value) for key, value in self._request.headers.raw],
            "server": (url.host, url.port),
            "client": None,
        }

    async def _receive(self) -> _Message:
        if self._body is None:
            await self.gone.wait()
            return {"type": "http.disconnect"}
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def _send(self, message: _Message) -> None:
        self._put(message)

    def _put(self, message: _Message | None) -> None:
        try:
            self._caller.call_soon_threadsafe(self._messages.put_nowait, message)
        except RuntimeError:  # the caller's event loop has been closed
            self.gone.set()

    async def start(self) -> _Message:
        """Return the message with status and headers. Like the methods below, it runs on the caller's event loop."""
        message = await self._messages.get()
        if message is None:
            raise httpx.RemoteProtocolError("the application gave no answer", request=self._request)
        return message

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the pieces of the body as the application sends them."""
        is_open = True
        while is_open:
            message = await self._messages.get()
            if message is None:
                raise httpx.RemoteProtocolError("the application broke its answer off", request=self._request)
            is_open = message.get("more_body", False)
            yield message.get("body", b"")

    async def aclose(self) -> None:
        """Disconnect from the application, and wake the readers that still wait."""
        self._messages.put_nowait(None)
        with suppress(RuntimeError):  # the application's loop has been closed
            self._app_loop.call_soon_threadsafe(self.gone.set)
