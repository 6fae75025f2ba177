"""A web server on loopback, a resolver for invented names, and the check of an image URL that is refused."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from ternvl.errors import ImageError
from ternvl.limits import ImageLimits
from ternvl.prompt.fetch import fetch

NAME = "messages[0] image 1"
BODY = bytes(range(256)) * 40
OPEN = ImageLimits(allow_private_addresses=True, fetch_timeout=5.0)

Answer = Callable[[BaseHTTPRequestHandler], None]


def refused(url: str, limits: ImageLimits = OPEN) -> ImageError:
    """The error for a URL, which must name the image and reveal no internals."""
    with pytest.raises(ImageError) as caught:
        fetch(url, limits, NAME)
    message = str(caught.value)
    assert message.startswith(NAME)
    assert message.endswith(".")
    assert "0x7f" not in message
    assert len(message) < 250
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value


def send(handler: BaseHTTPRequestHandler, status: int = 200, body: bytes = BODY, **headers: str) -> None:
    handler.send_response(status)
    for key, value in (
        {"Content-Length": str(len(body))} | {k.replace("_", "-"): v for k, v in headers.items()}
    ).items():
        handler.send_header(key, value)
    handler.end_headers()
    handler.wfile.write(body)


def redirect(location: str, status: int = 302) -> Answer:
    return lambda handler: send(handler, status, b"", Location=location)


class Server:
    """Responds by path, and records the paths and headers of requests."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {"/a.png": send}
        self.requests: list[tuple[str, dict[str, str]]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append((self.path, dict(self.headers)))
                try:
                    server.answers.get(self.path, lambda handler: send(handler, 404))(self)
                except OSError:
                    self.close_connection = True  # the client has closed the connection, as in some tests

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.port = self.http.server_address[1]
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


def names(monkeypatch: pytest.MonkeyPatch, addresses: dict[str, list[str]]) -> list[str]:
    """Resolves only these names; returns a list that records the names that were looked up."""
    asked: list[str] = []

    def resolve(host: Any, port: Any, *args: Any, **options: Any) -> list[Any]:
        host = host.decode() if isinstance(host, bytes) else host
        asked.append(host)
        if host not in addresses and not host[:1].isdigit():
            raise socket.gaierror("unknown")
        return [(2, 1, 6, "", (address, port)) for address in addresses.get(host, [host])]

    monkeypatch.setattr("ternvl.prompt.download.socket.getaddrinfo", resolve)
    return asked
