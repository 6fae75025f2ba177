"""A server that answers what it is told, and notes what it was asked."""

from __future__ import annotations

import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class ScriptedServer(ThreadingHTTPServer):
    """Answers with status, headers and body from a list, the last of them again and again."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script: list[tuple[int, dict[str, str], Any]] = []
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.models: Any = None
        """What `GET /v1/models` answers; None is 404."""
        self.listed = 0
        self.delay = 0.0
        """Seconds that an answer takes."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def say(self, content: Any, **choice: Any) -> None:
        """Answer with a message."""
        self.script = [(200, {}, {"choices": [{"message": {"content": content}, "finish_reason": "stop", **choice}]})]


class _Handler(BaseHTTPRequestHandler):
    server: ScriptedServer

    def do_POST(self) -> None:
        server = self.server
        server.paths.append(self.path)
        server.headers.append(dict(self.headers))
        server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        time.sleep(server.delay)
        status, headers, body = server.script.pop(0) if len(server.script) > 1 else server.script[0]
        self.answer(status, headers, body)

    def do_GET(self) -> None:
        self.server.listed += 1
        assert self.path == "/v1/models"
        models = self.server.models
        self.answer(404 if models is None else 200, {}, {"error": {}} if models is None else models)

    def answer(self, status: int, headers: dict[str, str], body: Any) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""
