"""The endpoints that describe the server itself."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ternvl import __version__
from ternvl.errors import TernvlError
from ternvl.server.endpoint import serving_of
from ternvl.server.metrics import CONTENT_TYPE


async def models(request: Request) -> Response:
    """`GET /v1/models`."""
    serving = serving_of(request)
    return JSONResponse({"object": "list", "data": serving.cards.all()})


async def model(request: Request) -> Response:
    """`GET /v1/models/{id}`; an id may hold slashes."""
    serving = serving_of(request)
    return JSONResponse(serving.cards.of(serving.names.resolve(request.path_params["id"])))


async def health(request: Request) -> Response:
    """`GET /health`: whether the process is alive and not about to stop."""
    if serving_of(request).gate.draining:
        return JSONResponse({"status": "draining"}, status_code=503)
    return JSONResponse({"status": "ok"})


async def ready(request: Request) -> Response:
    """`GET /ready`: whether a request would be accepted now."""
    serving = serving_of(request)
    try:
        serving.gate.check()
        serving.service.check_room(1)
    except TernvlError as error:
        return JSONResponse({"status": "not ready", "reason": str(error)}, status_code=503)
    return JSONResponse({"status": "ready"})


async def version(request: Request) -> Response:
    """`GET /version`."""
    return JSONResponse({"version": __version__})


async def metrics(request: Request) -> Response:
    """`GET /metrics`, for Prometheus."""
    return Response(serving_of(request).metrics.render(), media_type=CONTENT_TYPE)
