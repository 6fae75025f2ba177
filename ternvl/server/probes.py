"""The endpoints that describe the server: its models, health, version and metrics."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ternvl import __version__
from ternvl.errors import TernvlError
from ternvl.server.endpoint import serving_of
from ternvl.server.metrics import CONTENT_TYPE


async def models(request: Request) -> Response:
    """Answer `GET /v1/models`: list the model under each of its names, and its adapters."""
    serving = serving_of(request)
    return JSONResponse({"object": "list", "data": serving.cards.all()})


async def model(request: Request) -> Response:
    """Answer `GET /v1/models/{id}`: describe one model or adapter. An id may contain slashes."""
    serving = serving_of(request)
    return JSONResponse(serving.cards.of(serving.names.resolve(request.path_params["id"])))


async def health(request: Request) -> Response:
    """Answer `GET /health`: 200 while the server runs, 503 once it is stopping."""
    if serving_of(request).gate.draining:
        return JSONResponse({"status": "draining"}, status_code=503)
    return JSONResponse({"status": "ok"})


async def ready(request: Request) -> Response:
    """Answer `GET /ready`: 200 if a request would be accepted now, otherwise 503 with the reason."""
    serving = serving_of(request)
    try:
        serving.gate.check()
        serving.service.check_room(1)
    except TernvlError as error:
        return JSONResponse({"status": "not ready", "reason": str(error)}, status_code=503)
    return JSONResponse({"status": "ready"})


async def version(request: Request) -> Response:
    """Answer `GET /version`: the version of ternvl."""
    return JSONResponse({"version": __version__})


async def metrics(request: Request) -> Response:
    """Answer `GET /metrics`: all metrics in Prometheus' text format."""
    return Response(serving_of(request).metrics.render(), media_type=CONTENT_TYPE)
