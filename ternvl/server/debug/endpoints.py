"""The endpoints for looking into a running server: `GET /debug/state` and `GET /debug/profile`."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from ternvl.errors import RequestError
from ternvl.server.debug.state import state_of
from ternvl.server.endpoint import serving_of
from ternvl.server.errors import ClientGone, HTTPError
from ternvl.server.guard.audit import DETAILS
from ternvl.server.sse import until_disconnect

FORMATS = ("collapsed", "speedscope")
SECONDS = (0.1, 60.0)
"""The least and the most seconds of a profile."""
_DEFAULT_SECONDS = "5"

PARAMETERS = (
    {
        "name": "seconds", "in": "query", "description": "How long to sample.",
        "schema": {"type": "number", "minimum": SECONDS[0], "maximum": SECONDS[1], "default": float(_DEFAULT_SECONDS)},
    },
    {
        "name": "format", "in": "query", "description": "The form: lines for flame graphs, or speedscope's JSON.",
        "schema": {"enum": [*FORMATS], "default": FORMATS[0]},
    },
)  # fmt: skip
"""The parameters of `/debug/profile`, in the words of OpenAPI."""


async def state(request: Request) -> Response:
    """Answer `GET /debug/state`: what the engine, its sequences and the threads do now."""
    _check_allowed(request)
    return JSONResponse(state_of(serving_of(request)))


async def profile(request: Request) -> Response:
    """Answer `GET /debug/profile`: the stacks in which the threads were seen within some seconds."""
    _check_allowed(request)
    seconds, form = _seconds(request), request.query_params.get("format", FORMATS[0])
    if form not in FORMATS:
        raise RequestError(f"format is {form[:40]!r}, but must be {' or '.join(FORMATS)}.", param="format")
    request.scope[DETAILS] |= {"seconds": seconds, "format": form}
    try:
        taken = await until_disconnect(request.receive, serving_of(request).profiler.profile(seconds))
    except ClientGone:
        return Response(status_code=499)
    return PlainTextResponse(taken.collapsed()) if form == "collapsed" else JSONResponse(taken.speedscope())


def _seconds(request: Request) -> float:
    given, (least, most) = request.query_params.get("seconds", _DEFAULT_SECONDS), SECONDS
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not least <= seconds <= most:
        rule = f"must be a number from {least:g} to {most:g}"
        raise RequestError(f"seconds is {given[:40]!r}, but {rule}.", param="seconds")
    return seconds


def _check_allowed(request: Request) -> None:
    """Raise HTTPError 403 unless these endpoints are on.

    If there is an administrator's key, `guard/auth.py` has already checked that the request has one.
    """
    serving = serving_of(request)
    if not serving.keys.guards_admin and not serving.config.debug_endpoints:
        message = "This endpoint needs a server with a key of an administrator (--admin-key), or --debug-endpoints."
        raise HTTPError(403, message, code="debug_not_allowed")
