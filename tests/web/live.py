"""A live server whose application a test can reach, as its operator would."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from ternvl.config import ServerConfig
from ternvl.llm import LLM
from ternvl.server import bind, create_app
from ternvl.server.guard.gate import Gate


@dataclass
class Live:
    """Where a server answers, and its gate."""

    url: str
    gate: Gate

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])


@contextmanager
def live(llm: LLM, *, prefix: str = "", **options: Any) -> Iterator[Live]:
    """A server on a free port, or on `port`; `options` are fields of `ServerConfig`.

    With a `prefix` it answers below it alone, as behind a proxy.
    """
    config = ServerConfig(log_level="error", **{"port": 0, **options})
    app = create_app(llm, config)
    with bind(config) as sock:
        served = Prefixed(app, prefix) if prefix else app
        server = uvicorn.Server(uvicorn.Config(served, log_level="error", timeout_graceful_shutdown=5))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        while not server.started:
            assert thread.is_alive()
            thread.join(0.01)
        try:
            yield Live("http://{}:{}".format(*sock.getsockname()), app.state.serving.gate)
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


class Prefixed:
    """What a proxy does that serves an application below a prefix: it passes on the paths below it without it."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self.app, self.prefix = app, prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            inner = path.removeprefix(self.prefix) if path.startswith(self.prefix + "/") else "/outside-of-the-prefix"
            scope = {**scope, "path": inner, "raw_path": inner.encode()}
        await self.app(scope, receive, send)
