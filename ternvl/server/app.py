"""The HTTP application: routes, and what lies around them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ternvl.config import ServerConfig
from ternvl.server.docs.openapi import docs, openapi, page_schema
from ternvl.server.endpoint import IGNORED_FIELDS, openai_form, read, send, serving_of
from ternvl.server.errors import Endpoint, guarded, plain_http_error
from ternvl.server.fold import fold
from ternvl.server.guard.auth import BearerAuth
from ternvl.server.guard.gate import Gated
from ternvl.server.guard.validate import check_config
from ternvl.server.metrics import Measured
from ternvl.server.probes import health, metrics, model, models, ready, version
from ternvl.server.protocols import adapters
from ternvl.server.protocols.chat import complete
from ternvl.server.protocols.chat_schema import ChatRequest
from ternvl.server.protocols.completions import completions
from ternvl.server.protocols.messages import count_tokens, messages
from ternvl.server.protocols.responses import responses
from ternvl.server.protocols.tokens import detokenize, tokenize
from ternvl.server.serving import Serving

if TYPE_CHECKING:
    from ternvl.llm import LLM


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
    answering: dict[str, Endpoint] = {
        "/v1/chat/completions": chat_completions,
        "/v1/completions": completions,
        "/v1/responses": responses,
        "/v1/messages": messages,
        "/v1/messages/count_tokens": count_tokens,
        "/v1/load_lora_adapter": adapters.load,
        "/v1/unload_lora_adapter": adapters.unload,
        "/v1/upload_lora_adapter": adapters.upload,
        "/tokenize": tokenize,
        "/detokenize": detokenize,
    }
    telling: dict[str, Endpoint] = {
        "/v1/models": models,
        "/v1/models/{name:path}": model,
        "/health": health,
        "/ready": ready,
        "/version": version,
        "/metrics": metrics,
        "/schema/chat-completions.json": page_schema,
        "/openapi.json": openapi,
        "/docs": docs,
    }
    return [
        *(Route(path, guarded(endpoint), methods=["POST"]) for path, endpoint in answering.items()),
        *(Route(path, guarded(endpoint), methods=["GET"]) for path, endpoint in telling.items()),
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
    if config.api_key or config.admin_key:
        middleware.append(Middleware(BearerAuth, api_key=config.api_key, admin_key=config.admin_key))
    paths = frozenset(route.path for route in _routes())
    measured = Middleware(Measured, metrics=serving.metrics, paths=paths)
    return [measured, *middleware, Middleware(Gated, gate=serving.gate)]


async def chat_completions(request: Request) -> Response:
    """`POST /v1/chat/completions`."""
    wanted, headers = await read(request, ChatRequest)
    form = openai_form(include_usage=wanted.includes_usage) if wanted.stream else None
    return await send(request, complete(serving_of(request), wanted), fold=fold, form=form, headers=headers)
