"""The endpoints that tell of the server itself."""

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
    return JSONResponse({"object": "list", "data": serving.model_cards()})


async def model(request: Request) -> Response:
    """`GET /v1/models/{id}`; an id may hold slashes."""
    serving = serving_of(request)
    return JSONResponse(serving.model_card(serving.resolve(request.path_params["name"])))


async def health(request: Request) -> Response:
    """`GET /health`: the process is alive, and takes requests unless it is about to stop."""
    if serving_of(request).gate.draining:
        return JSONResponse({"status": "draining"}, status_code=503)
    return JSONResponse({"status": "ok"})


async def ready(request: Request) -> Response:
    """`GET /ready`: whether a request that came now would be taken."""
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
