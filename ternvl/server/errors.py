"""Turns exceptions into HTTP answers in the error shape of the endpoint's protocol.

OpenAI's shape is `{"error": {"message", "type", "param", "code"}}`, Anthropic's `{"type": "error", "error": {"type",
"message"}}`.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable, Mapping
from secrets import token_hex
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ternvl.errors import (
    ContextLengthError,
    MediaError,
    OverloadedError,
    RequestError,
    RequestTimeoutError,
    UnavailableError,
    UnknownAdapterError,
    lacks_memory,
)
from ternvl.server.log.request_id import in_words

logger = logging.getLogger("ternvl.server")

Endpoint = Callable[[Request], Awaitable[Response]]

_PLAIN = {
    404: "There is no endpoint {method} {path}; the chat endpoint is POST /v1/chat/completions.",
    405: "{path} does not support the method {method}.",
}


_LACKS = {
    errno.ENOMEM: "memory",
    errno.EAGAIN: "processes",
    errno.EMFILE: "open files",
    errno.ENFILE: "open files",
    errno.ENOSPC: "space on its disk",
    errno.EDQUOT: "space on its disk",
}
"""What the operating system had too little of, by the number of its error."""

_ANTHROPIC_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


ERROR_SHAPE = "ternvl.error_shape"
"""The key of an ASGI scope for the shape of errors: "openai", the default, or "anthropic"."""


class HTTPError(Exception):
    """An answer with an error status, which also determines the error's `type`."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        anthropic_message: str | None = None,
    ) -> None:
        """`anthropic_message` replaces the message in Anthropic's shape."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.anthropic_message = anthropic_message or message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The JSON body of the answer in OpenAI's shape."""
        error = {"message": self.message, "type": self._type, "param": self.param, "code": self.code}
        return {"error": error}

    @property
    def anthropic_body(self) -> dict[str, Any]:
        """The JSON body of the answer in Anthropic's shape."""
        kind = _ANTHROPIC_TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": self.anthropic_message}}

    def response(self, scope: Mapping[str, Any]) -> Response:
        """Return the answer to the request of an ASGI `scope`, in the shape of its protocol."""
        body = self.anthropic_body if scope.get(ERROR_SHAPE) == "anthropic" else self.body
        return JSONResponse(body, status_code=self.status, headers=self.headers)

    @property
    def _type(self) -> str:
        kinds = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error"}
        return kinds.get(min(self.status, 500), "invalid_request_error")


class ClientGone(Exception):
    """Raised if the client has closed the connection, so that no answer can be sent."""


def to_http(error: BaseException) -> HTTPError:
    """Return the answer to an exception. An unexpected one is logged with an id, and its answer has only the id."""
    match error:
        case HTTPError():
            return error
        case UnknownAdapterError():
            return HTTPError(404, str(error), error.param, error.code)
        case ContextLengthError():
            return HTTPError(400, str(error), error.param, error.code, anthropic_message=error.anthropic_message)
        case RequestError():
            status = 413 if isinstance(error, MediaError) and error.too_large else 400
            return HTTPError(status, str(error), error.param, error.code)
        case OverloadedError():
            return HTTPError(429, str(error), code="overloaded", headers={"Retry-After": str(error.retry_after or 1)})
        case UnavailableError():
            _log_lack(error.__cause__)
            return HTTPError(503, str(error), code="unavailable", headers={"Retry-After": "5"})
        case RequestTimeoutError():
            return HTTPError(504, str(error), code="request_timeout")
    if lack := _log_lack(error):
        message = f"The server has no more {lack} for this request at the moment."
        return HTTPError(503, message, code="unavailable", headers={"Retry-After": "5"})
    error_id = f"err_{token_hex(8)}"
    logger.error("%s%s: %s", error_id, in_words(), error, exc_info=error)
    message = f"The server failed on this request; its log has the cause under the id {error_id}{in_words()}."
    return HTTPError(500, message, code=error_id)


def _log_lack(error: BaseException | None) -> str:
    """Log what the machine lacked, and return it; nothing and an empty text if the error has another cause."""
    if error is None or not (lack := _lack(error)):
        return ""
    logger.error("The system has no more %s for a request%s: %s", lack, in_words(), str(error) or type(error).__name__)
    return lack


def _lack(error: BaseException) -> str:
    """Return what the machine lacked, in words; empty if the error has another cause."""
    if isinstance(error, OSError):
        return _LACKS.get(error.errno or 0, "")
    if lacks_memory(error):
        return "memory"
    return "threads" if isinstance(error, RuntimeError) and "can't start new thread" in str(error) else ""


def guarded(endpoint: Endpoint) -> Endpoint:
    """Return `endpoint` wrapped so that every exception becomes an answer in the protocol's shape."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except Exception as error:
            return to_http(error).response(request.scope)

    return answer


async def plain_http_error(request: Request, error: Exception) -> Response:
    """Return the answer to an unknown path or a wrong method, in the protocol's shape."""
    assert isinstance(error, HTTPException)
    message = _PLAIN.get(error.status_code, error.detail).format(method=request.method, path=request.url.path)
    return HTTPError(error.status_code, message, headers=dict(error.headers or {})).response(request.scope)
