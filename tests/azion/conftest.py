from __future__ import annotations

import io
import socket
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpcore
import pytest
from PIL import Image, ImageDraw

from ternvl.llm import LLM
from tests.server.fakes import serving

CERTIFICATE = Path(__file__).with_name("example.com.pem")  # made for these tests; nobody else trusts it
ADDRESS = "93.184.215.14"  # a public one, so that the rules about addresses are in force


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    """The address of a server with the embedded model."""
    with serving(LLM()) as address:
        yield address


@pytest.fixture(params=["server", "in process"])
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who answers `Azion.AI.run`, with the embedded model."""
    for variable in ("TERNVL_BASE_URL", "TERNVL_API_KEY", "TERNVL_MODEL"):
        monkeypatch.delenv(variable, raising=False)
    if request.param == "server":
        monkeypatch.setenv("TERNVL_BASE_URL", request.getfixturevalue("url") + "/v1")
    return str(request.param)


def picture() -> bytes:
    """A red circle to the left of a blue square, as JPEG."""
    image = Image.new("RGB", (112, 112), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((8, 44, 48, 84), fill=(220, 30, 30))
    draw.rectangle((64, 44, 104, 84), fill=(30, 60, 220))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


class _Images(BaseHTTPRequestHandler):
    body = picture()

    def do_GET(self) -> None:
        is_known = self.path == "/image.jpg" and self.headers["Host"] == "example.com"
        self.send_response(200 if is_known else 404)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="session")
def image_server() -> Iterator[int]:
    """The port of an HTTPS server that calls itself example.com and has one image."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Images)
    server.daemon_threads = True
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def example_com(image_server: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within this process, https://example.com is the local image server.

    The name resolves to a public address, packets to this address go to the server, and its certificate is trusted;
    what the fetcher checks on the way, it checks.
    """
    resolve, connect = socket.getaddrinfo, httpcore.SyncBackend.connect_tcp

    def getaddrinfo(host: Any, port: Any, *args: Any, **options: Any) -> Any:
        return resolve(ADDRESS if host == "example.com" else host, port, *args, **options)

    def connect_tcp(backend: httpcore.SyncBackend, host: str, port: int, *args: Any) -> httpcore.NetworkStream:
        place = ("127.0.0.1", image_server) if (host, port) == (ADDRESS, 443) else (host, port)
        return connect(backend, *place, *args)

    trusting = ssl.create_default_context(cafile=str(CERTIFICATE))
    monkeypatch.setattr("ternvl.prompt.download.socket.getaddrinfo", getaddrinfo)
    monkeypatch.setattr("ternvl.prompt.download.httpcore.SyncBackend.connect_tcp", connect_tcp)
    monkeypatch.setattr("ternvl.prompt.download._ssl_context", lambda: trusting)
