"""ASGI middleware of the metrics: requests by endpoint and status, and a port of their own."""

from __future__ import annotations

import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ternvl.server.errors import HTTPError
from ternvl.server.guard.auth import CALLER
from ternvl.server.log import request_log
from ternvl.server.metrics.recorder import Metrics

PATH = "/metrics"

ENDPOINT = "ternvl.endpoint"
"""The key of an ASGI scope for the endpoint's path.

Requests without it count as "other", so that unknown paths do not create time series.
"""


class Measured:
    """ASGI middleware that counts, times and logs the answers of each endpoint by their status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and measure its time."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started, status, record = time.perf_counter(), 499, request_log.Record()
        token = request_log.current.set(record)

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            request_log.current.reset(token)
            endpoint, seconds = scope.get(ENDPOINT, "other"), time.perf_counter() - started
            self._metrics.requests.labels(endpoint, str(status)).inc()
            self._metrics.seconds.labels(endpoint).observe(seconds)
            record.write(scope["method"], endpoint, status, seconds, scope.get(CALLER, ""))


class Ports:
    """ASGI middleware that answers 404 to `/metrics` on the server's port, and to all else on that of the metrics."""

    def __init__(self, app: ASGIApp, metrics_port: Callable[[], int | None]) -> None:
        """`metrics_port` returns the port of the metrics, which is known once it is bound; None if it has none."""
        self._app = app
        self._metrics_port = metrics_port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on requests that came to the port of their path."""
        port = self._metrics_port()
        if scope["type"] != "http" or port is None:
            return await self._app(scope, receive, send)
        came_to_metrics = (scope.get("server") or ("", None))[1] == port
        if came_to_metrics == (scope["path"] == PATH):
            return await self._app(scope, receive, send)
        where = f"only {PATH} is served on this port" if came_to_metrics else f"{PATH} is served on another port"
        await HTTPError(404, f"There is no endpoint {scope['path']}; {where}.").response(scope)(scope, receive, send)
