"""An ASGI application as a transport of httpx: the server's own answers, without a network.

The application lives on one thread with one event loop, whatever loops its callers come and go with. httpx's own
`ASGITransport` gathers a whole answer before it hands out the first byte; here a stream streams.
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
    """Runs one application until `close`, or until the interpreter exits. Safe to share between threads and loops."""

    def __init__(self, app: Any) -> None:
        """Start `app`, a Starlette application. Raises what its start-up raises."""
        self._app = app
        self._running: dict[asyncio.Task[None], _Exchange] = {}  # the application's loop's own
        self._stop = asyncio.Event()
        self._loop: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=self._work, name="ternvl-app", daemon=True)
        self._thread.start()
        self._loop.result()
        # `atexit` comes too late: by then no executor takes work, and shutting down needs one. An engine that is still
        # computing while the interpreter goes away would crash it.
        threading._register_atexit(self.close)  # type: ignore[attr-defined]

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """The application's answer, from its first byte on. Closing the response tells it that the client has left."""
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
        """Break off what still runs, shut the application down and wait for its end. Blocks; may be called again."""
        if self._thread.is_alive():
            self._loop.result().call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def _work(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:
            if self._loop.done():
                logger.exception("The application failed while it was shut down.")
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
        """On the application's loop: the caller has left."""
        self._request = request
        self._body: bytes | None = body
        self._caller = asyncio.get_running_loop()
        self._app_loop = app_loop
        # Without a bound: the engine does not wait for readers either, and one answer is small.
        self._messages: asyncio.Queue[_Message | None] = asyncio.Queue()

    async def answer(self, app: Any) -> None:
        """On the application's loop: the application's whole work on this request."""
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
        """On the caller's loop, as what follows: status and headers."""
        message = await self._messages.get()
        if message is None:
            raise httpx.RemoteProtocolError("the application gave no answer", request=self._request)
        return message

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The body's pieces as the application sends them."""
        is_open = True
        while is_open:
            message = await self._messages.get()
            if message is None:
                raise httpx.RemoteProtocolError("the application broke its answer off", request=self._request)
            is_open = message.get("more_body", False)
            yield message.get("body", b"")

    async def aclose(self) -> None:
        """Tell the application that nobody listens any more, and wake whoever still reads."""
        self._messages.put_nowait(None)
        with suppress(RuntimeError):  # the application's loop has been closed
            self._app_loop.call_soon_threadsafe(self.gone.set)
