"""The endpoints that describe the server: its models, health, version and metrics."""

from __future__ import annotations

import logging

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ternvl import __version__
from ternvl.errors import TernvlError, UnavailableError
from ternvl.server.endpoint import serving_of
from ternvl.server.metrics.recorder import CONTENT_TYPE

logger = logging.getLogger("ternvl.server")


async def models(request: Request) -> Response:
    """Answer `GET /v1/models`: list the model under each of its names, and its adapters."""
    serving = serving_of(request)
    return JSONResponse({"object": "list", "data": serving.cards.all()})


async def model(request: Request) -> Response:
    """Answer `GET /v1/models/{id}`: describe one model or adapter. An id may contain slashes."""
    serving = serving_of(request)
    return JSONResponse(serving.cards.of(serving.names.resolve(request.path_params["id"])))


async def health(request: Request) -> Response:
    """Answer `GET /health`: 200 while the process is alive, also while it stops; 503 if a step of the engine is stuck.

    Who runs the server may end it for a 503, which would cut the answers of a server that stops.
    """
    serving = serving_of(request)
    seconds, was_stuck = serving.service.seconds_in_step, serving.is_stuck
    serving.is_stuck = seconds > serving.config.stuck_timeout
    if serving.is_stuck:
        if not was_stuck:
            logger.error("The engine's present step has taken %.0f s and has not ended; /health answers 503.", seconds)
        return JSONResponse({"status": "stuck"}, status_code=503)
    return JSONResponse({"status": "draining" if serving.gate.draining else "ok"})


async def ready(request: Request) -> Response:
    """Answer `GET /ready`: 200 if a request would be accepted now, otherwise 503 with the reason."""
    serving = serving_of(request)
    try:
        serving.gate.check()
        serving.service.check_room(1)
        _check_step(serving.service.seconds_in_step, serving.config.stuck_timeout / 4)
    except TernvlError as error:
        return JSONResponse({"status": "not ready", "reason": str(error)}, status_code=503)
    return JSONResponse({"status": "ready"})


def _check_step(seconds: float, most: float) -> None:
    if seconds > most:
        raise UnavailableError(f"The engine's present step has taken {seconds:.0f} s and has not ended.")


async def version(request: Request) -> Response:
    """Answer `GET /version`: the version of ternvl."""
    return JSONResponse({"version": __version__})


async def metrics(request: Request) -> Response:
    """Answer `GET /metrics`: all metrics in Prometheus' text format."""
    return Response(serving_of(request).metrics.render(), media_type=CONTENT_TYPE)
