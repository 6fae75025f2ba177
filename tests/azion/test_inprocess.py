"""The transport of httpx that calls an application in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ternvl.azion.inprocess import InProcessTransport


async def echo(request: Request) -> Response:
    return PlainTextResponse(f"{request.query_params['name']}: {(await request.body()).decode()}")


async def fail(request: Request) -> Response:
    raise ValueError("on purpose")


async def say_nothing(scope: Scope, receive: Receive, send: Send) -> None:
    return None


def application(*, fails_at: str = "") -> Starlette:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        if fails_at == "start":
            raise OSError("no start")
        yield
        if fails_at == "end":
            raise OSError("no end")

    routes = [Route("/echo", echo, methods=["POST"]), Route("/fail", fail)]
    app = Starlette(routes=routes, lifespan=lifespan)
    app.mount("/nothing", say_nothing)
    return app


async def ask(transport: InProcessTransport, method: str, path: str, body: str = "") -> httpx.Response:
    request = httpx.Request(method, f"http://ternvl{path}", content=body)
    response = await transport.handle_async_request(request)
    await response.aread()
    return response


def test_an_application_that_fails_at_its_start_raises_its_own_error() -> None:
    with pytest.raises(OSError, match="no start"):
        InProcessTransport(application(fails_at="start"))


def test_a_request_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    transport = InProcessTransport(application())
    try:
        assert asyncio.run(ask(transport, "GET", "/fail")).status_code == 500
        with pytest.raises(httpx.RemoteProtocolError, match="no answer"):
            asyncio.run(ask(transport, "GET", "/nothing/here"))
        assert asyncio.run(ask(transport, "POST", "/echo?name=a%20b", "größe")).text == "a b: größe"
    finally:
        transport.close()
    assert "The application failed on a request." in caplog.messages


def test_a_closed_application_refuses_requests(caplog: pytest.LogCaptureFixture) -> None:
    transport = InProcessTransport(application(fails_at="end"))
    transport.close()
    transport.close()
    with pytest.raises(httpx.ConnectError, match="has been closed"):
        asyncio.run(ask(transport, "POST", "/echo?name=x"))
    assert caplog.messages == ["The application failed during its shut-down."]
