"""The HTTP application: its routes and its middleware."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from ternvl.config import ServerConfig
from ternvl.server.answering import BROKEN_SCHEMA, UNCHECKED_SCHEMA, UNENFORCED_SCHEMA
from ternvl.server.connection.lingering import Lingering
from ternvl.server.docs.operation import Operation
from ternvl.server.endpoint import IGNORED_FIELDS
from ternvl.server.errors import plain_http_error
from ternvl.server.guard import deprecation, rate
from ternvl.server.guard.audit import Audited
from ternvl.server.guard.auth import BearerAuth
from ternvl.server.guard.gate import Gated
from ternvl.server.guard.validate import check_config
from ternvl.server.log import request_id
from ternvl.server.metrics.middleware import Measured, Ports
from ternvl.server.operations import OPERATIONS, PAGES, Described, routes
from ternvl.server.serving import Serving
from ternvl.server.tracing.provider import Tracing

if TYPE_CHECKING:
    from ternvl.llm import LLM

_OWN_HEADERS = (IGNORED_FIELDS, UNENFORCED_SCHEMA, BROKEN_SCHEMA, UNCHECKED_SCHEMA)


def create_app(llm: LLM, config: ServerConfig) -> Starlette:
    """Return the application that serves one model. The engine runs from the application's start-up to its shut-down.

    Raises ConfigError for an invalid setting.
    """
    check_config(config)
    serving = Serving(llm, config)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await serving.start()
        yield
        await serving.close()

    served = (*OPERATIONS, *PAGES) if config.playground else OPERATIONS
    app = Starlette(
        routes=routes(served),
        middleware=_middleware(serving, served),
        exception_handlers={HTTPException: plain_http_error},
        lifespan=lifespan,
    )
    app.state.serving = serving
    app.state.operations = OPERATIONS
    app.state.deprecations = deprecation.DEPRECATIONS
    return app


def _middleware(serving: Serving, served: Sequence[Operation]) -> list[Middleware]:
    """Return the middleware, outermost first.

    CORS comes before the check of keys, because browsers send preflight requests without a key.
    """
    config = serving.config
    traced = () if serving.tracing is None else ("traceresponse",)
    middleware = [
        Middleware(Lingering),
        Middleware(request_id.Identified),
        Middleware(Described, operations=served),
        Middleware(Measured, metrics=serving.metrics),
        *_traced(serving.tracing),
        Middleware(Ports, metrics_port=lambda: serving.metrics_port),
        Middleware(deprecation.Deprecating, rows=deprecation.DEPRECATIONS),
    ]
    if config.allowed_origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=config.allowed_origins,
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=[
                    *(*_OWN_HEADERS, request_id.HEADER, "Retry-After"),
                    *(*rate.HEADERS, *deprecation.HEADERS, *traced),
                ],
            )
        )
    return [
        *middleware,
        Middleware(Audited),
        Middleware(BearerAuth, store=serving.keys),
        Middleware(rate.RateLimited),
        Middleware(Gated, gate=serving.gate),
    ]


def _traced(tracing: Tracing | None) -> list[Middleware]:
    """Return the middleware that traces requests, if there is a collector for its spans."""
    if tracing is None:
        return []
    from ternvl.server.tracing.middleware import Traced

    return [Middleware(Traced, tracing=tracing)]
