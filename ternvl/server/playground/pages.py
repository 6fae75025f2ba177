"""Serves the files of the playground, which are the same for everyone and hold no secret."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

from ternvl.server.errors import HTTPError

_PAGE = "index.html"

_MEDIA_TYPES = {
    _PAGE: "text/html; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "licenses.txt": "text/plain; charset=utf-8",
}

_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data: blob:",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    # Text never becomes markup by accident: only DOMPurify may turn a string into elements.
    "require-trusted-types-for": "'script'",
    "trusted-types": "dompurify",
}

HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in _POLICY.items()),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-cache",  # a browser keeps the files, and asks each time whether they have changed
}


async def page(request: Request) -> Response:
    """Answer `GET /`: the page."""
    return _answer(request, _PAGE)


async def file(request: Request) -> Response:
    """Answer `GET /playground/{id}`: one of the files that the page loads. Raises HTTPError 404 for other names."""
    name = request.path_params["id"]
    if name not in _MEDIA_TYPES or name == _PAGE:
        raise HTTPError(404, f"The playground has no file {name}.")
    return _answer(request, name)


def _answer(request: Request, name: str) -> Response:
    content, tag = _read(name)
    headers = HEADERS | {"ETag": tag}
    known = {each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")}
    if known & {tag, "*"}:
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=_MEDIA_TYPES[name])


@cache
def _read(name: str) -> tuple[bytes, str]:
    """Return the content of a file and its entity tag."""
    content = files("ternvl.server.playground").joinpath(name).read_bytes()
    return content, f'"{hashlib.sha256(content).hexdigest()[:32]}"'
