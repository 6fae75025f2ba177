"""The HTTP application: routes, and what lies around them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ternvl import __version__
from ternvl.config import ServerConfig
from ternvl.server.auth import BearerAuth
from ternvl.server.chat import Chunk, complete
from ternvl.server.errors import guarded, plain_http_error
from ternvl.server.fields import ignored_header, parse_chat
from ternvl.server.fold import fold
from ternvl.server.gate import Gated
from ternvl.server.limits import read_json
from ternvl.server.serving import Serving
from ternvl.server.sse import ClientGone, EventStream, until_disconnect
from ternvl.server.validate import check_config

if TYPE_CHECKING:
    from ternvl.llm import LLM

logger = logging.getLogger("ternvl.server")

IGNORED_FIELDS = "x-ternvl-ignored-fields"


def create_app(llm: LLM, config: ServerConfig) -> Starlette:
    """The application that serves one model. The engine runs from its start-up to its shut-down.

    Raises ConfigError for a setting that cannot be.
    """
    check_config(config)
    serving = Serving(llm, config)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await serving.start()
        yield
        await serving.close()

    app = Starlette(
        routes=_routes(),
        middleware=_middleware(serving),
        exception_handlers={HTTPException: plain_http_error},
        lifespan=lifespan,
    )
    app.state.serving = serving
    return app


def _routes() -> list[Route]:
    return [
        Route("/v1/chat/completions", guarded(chat_completions), methods=["POST"]),
        Route("/v1/models", guarded(models), methods=["GET"]),
        Route("/v1/models/{name:path}", guarded(model), methods=["GET"]),
        Route("/health", guarded(health), methods=["GET"]),
        Route("/version", guarded(version), methods=["GET"]),
    ]


def _middleware(serving: Serving) -> list[Middleware]:
    """Outermost first. A browser's question about origins carries no key, so it is answered before the key is asked."""
    config, middleware = serving.config, []
    if config.allowed_origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=config.allowed_origins,
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=[IGNORED_FIELDS],
            )
        )
    if config.api_key:
        middleware.append(Middleware(BearerAuth, api_key=config.api_key))
    return [*middleware, Middleware(Gated, gate=serving.gate)]


async def chat_completions(request: Request) -> Response:
    """`POST /v1/chat/completions`."""
    serving = _serving(request)
    body = await read_json(request, serving.config)
    chat, ignored = await asyncio.to_thread(parse_chat, body, strict=serving.config.strict)
    headers = {IGNORED_FIELDS: ignored_header(ignored)} if ignored else {}
    if ignored:
        logger.warning("ignored unknown fields: %s", headers[IGNORED_FIELDS])
    chunks = complete(serving, chat)
    try:
        if not chat.stream:
            return JSONResponse(await until_disconnect(request.receive, _folded(chunks)), headers=headers)
        first = await until_disconnect(request.receive, _first(chunks))
    except ClientGone:
        return Response(status_code=499)
    include_usage = bool(chat.stream_options and chat.stream_options.include_usage)
    return EventStream(first, chunks, partial(_streamed, include_usage=include_usage), headers)


async def _folded(chunks: AsyncGenerator[Chunk]) -> dict[str, Any]:
    async with aclosing(chunks):
        return await fold(chunks)


async def _first(chunks: AsyncGenerator[Chunk]) -> Chunk:
    return await anext(chunks)


def _streamed(chunk: Chunk, *, include_usage: bool) -> Chunk | None:
    """A chunk as a client gets it: with `include_usage` each has the key and the last one the value; without it the
    last one is not sent."""
    if include_usage:
        return {"usage": None, **chunk}
    return chunk if chunk["choices"] else None


async def models(request: Request) -> Response:
    """`GET /v1/models`."""
    serving = _serving(request)
    return JSONResponse({"object": "list", "data": [serving.model_card(name) for name in serving.names]})


async def model(request: Request) -> Response:
    """`GET /v1/models/{id}`."""
    serving = _serving(request)
    return JSONResponse(serving.model_card(serving.resolve(request.path_params["name"])))


async def health(request: Request) -> Response:
    """`GET /health`: the process is alive, and takes requests unless it is about to stop."""
    if _serving(request).gate.draining:
        return JSONResponse({"status": "draining"}, status_code=503)
    return JSONResponse({"status": "ok"})


async def version(request: Request) -> Response:
    """`GET /version`."""
    return JSONResponse({"version": __version__})


def _serving(request: Request) -> Serving:
    serving: Serving = request.app.state.serving
    return serving
