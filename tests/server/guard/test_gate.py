"""The gate: its limit, and how it gives requests up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from ternvl.config import EngineConfig, ServerConfig
from ternvl.engine.stats import Pace
from ternvl.errors import OverloadedError
from ternvl.llm import LLM
from ternvl.server import bind, create_app
from ternvl.server.guard import gate as gate_module
from ternvl.server.guard.gate import Gate, Gated, GateLimits
from tests.engine.test_stats import Clock
from tests.server.calling import BRIEF, CHAT
from tests.server.fakes import scripted_llm, serving


def test_too_many_requests_at_once() -> None:
    with (
        serving(scripted_llm("abc", endless=True), max_concurrent_requests=1) as url,
        httpx.stream("POST", url + CHAT, json={**BRIEF, "stream": True}) as response,
    ):
        stream = response.iter_bytes()  # held, for httpx ends the connection with its iterator
        next(stream)
        refused = httpx.post(url + CHAT, json=BRIEF)
        assert httpx.get(f"{url}/health").status_code == 200
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 0


def test_a_full_server_says_when_it_is_likely_to_have_room() -> None:
    llm = scripted_llm("abc", endless=True)
    clock = Clock()
    llm.service._loop._pace = pace = Pace(clock)
    pace.resume()
    for _ in range(10):
        clock.now += 7
        pace.count()
    with (
        serving(llm, max_concurrent_requests=1) as url,
        httpx.Client(base_url=url, timeout=60) as http,
        http.stream("POST", CHAT, json={**BRIEF, "stream": True}) as response,
    ):
        stream = response.iter_bytes()
        next(stream)
        told = [http.post(path, json=BRIEF).headers["retry-after"] for path in (CHAT, "/v1/messages", CHAT)]
    assert told == ["7", "14", "21"], "one after another"


def test_a_request_that_would_wait_too_long_is_refused_with_its_status() -> None:
    config = EngineConfig(max_model_len=1024, max_num_seqs=1, max_queue_wait=0.0)
    llm = scripted_llm("abc", config=config)
    with serving(llm) as url, httpx.Client(base_url=url, timeout=60) as http:
        assert http.post(CHAT, json=BRIEF).status_code == 200
        llm.engine.endless = True  # type: ignore[union-attr]
        with http.stream("POST", CHAT, json={**BRIEF, "max_tokens": 800, "stream": True}) as response:
            stream = response.iter_bytes()
            next(stream)
            assert http.get("/ready").status_code == 503
            refused = http.post(CHAT, json={**BRIEF, "stream": True})
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
        assert "--max-queue-wait" in refused.json()["error"]["message"]
        assert int(refused.headers["retry-after"]) >= 1
        while http.get("/ready").status_code != 200:
            time.sleep(0.01)


def visit(app: Any, *, method: str = "POST") -> tuple[asyncio.Task[None], list[Message]]:
    """A request to an application, as a task, and what it sends."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": "/", "headers": []}
    return asyncio.create_task(app(scope, receive, send)), sent


async def forever(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    if scope["method"] == "GET":
        await send({"type": "http.response.start", "status": 200, "headers": []})
    await asyncio.sleep(3600)


def test_the_gate_has_a_limit_and_counts_work_alone() -> None:
    async def main() -> None:
        gate = Gate(GateLimits(1), retry_after=lambda places: 7)
        app = Gated(forever, gate)
        looking, _ = visit(app, method="GET")
        working, _ = visit(app)
        await asyncio.sleep(0)
        refused, answer = visit(app)
        await refused
        assert answer[0]["status"] == 429
        assert (b"retry-after", b"7") in answer[0]["headers"]
        assert gate.num_running == 1
        assert not await gate.wait_until_empty(0.01)
        working.cancel()
        assert await gate.wait_until_empty(5)
        looking.cancel()

    asyncio.run(main())


def test_those_who_are_refused_are_asked_to_return_one_after_another() -> None:
    async def main() -> None:
        gate = Gate(GateLimits(1), retry_after=lambda places: 10 * places)
        app = Gated(forever, gate)
        working, _ = visit(app)
        await asyncio.sleep(0)
        told = []
        for _ in range(3):
            with pytest.raises(OverloadedError):
                gate.check()  # as the probe of readiness does, whom nobody asks to return
            refused, answer = visit(app)
            await refused
            told.append(dict(answer[0]["headers"])[b"retry-after"])
        assert told == [b"10", b"20", b"30"]
        working.cancel()

    asyncio.run(main())


def test_a_gate_that_gives_up_answers_who_has_no_answer_yet() -> None:
    async def begun(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(3600)

    async def main() -> None:
        gate = Gate(GateLimits(9), retry_after=lambda places: 1)
        silent, answer = visit(Gated(forever, gate))
        streaming, cut = visit(Gated(begun, gate))
        await asyncio.sleep(0.01)
        gate.draining = True
        gate.give_up()
        assert await gate.wait_until_empty(5)
        await silent
        assert answer[0]["status"] == 503
        assert (b"connection", b"close") in answer[0]["headers"]
        assert streaming.cancelled()
        assert [message["type"] for message in cut] == ["http.response.start"]
        late, refusal = visit(Gated(PlainTextResponse("never"), gate))
        await late
        assert refusal[0]["status"] == 503

    asyncio.run(main())


@contextmanager
def serving_little(llm: LLM, **options: Any) -> Iterator[str]:
    """A server whose sockets hold few unread bytes."""
    config = ServerConfig(port=0, log_level="error", **options)
    with bind(config) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        server = uvicorn.Server(uvicorn.Config(create_app(llm, config), log_level="critical"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        while not server.started:
            thread.join(0.01)
        try:
            yield "http://{}:{}".format(*sock.getsockname())
        finally:
            server.should_exit = True
            thread.join(20)


def connect(url: str) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((httpx.URL(url).host, httpx.URL(url).port or 80))
    return client


def head(size: int) -> bytes:
    lines = [f"POST {CHAT} HTTP/1.1", "Host: x", "Content-Type: application/json", f"Content-Length: {size}", "", ""]
    return "\r\n".join(lines).encode()


def test_bodies_that_arrive_slowly_take_no_place_and_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "_SLOW_SECONDS", 0.5)
    with serving(scripted_llm("abc"), max_concurrent_requests=2) as url, contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connect(url)) for _ in range(5)]
        for client in slow:
            client.sendall(head(1000) + b"{")
        assert httpx.post(url + CHAT, json=BRIEF).status_code == 200
        for client in slow:
            assert client.recv(4096).startswith(b"HTTP/1.1 408")
        with connect(url) as steady:  # a slow body above the least rate
            body = json.dumps(BRIEF | {"user": "x" * 3000}).encode()
            steady.sendall(head(len(body)))
            for start in range(0, len(body), 1000):
                steady.sendall(body[start : start + 1000])
                time.sleep(0.3)
            assert steady.recv(4096).startswith(b"HTTP/1.1 200")


def test_a_client_that_does_not_read_loses_its_place() -> None:
    llm = scripted_llm("abc", endless=True)
    with serving_little(llm, max_concurrent_requests=1, write_timeout=0.3) as url, connect(url) as client:
        body = json.dumps({**BRIEF, "stream": True, "max_tokens": 100_000}).encode()
        client.sendall(head(len(body)) + body)
        while not llm.engine.aborted:  # type: ignore[union-attr]
            time.sleep(0.05)
        llm.engine.endless = False  # type: ignore[union-attr]
        assert httpx.post(url + CHAT, json=BRIEF).status_code == 200


def test_all_bodies_together_have_a_limit() -> None:
    with serving(scripted_llm("abc"), max_total_body_bytes=5000) as url, connect(url) as first:
        first.sendall(head(4000) + b"{" + b" " * 3000)
        time.sleep(0.2)
        refused = httpx.post(url + CHAT, json=BRIEF | {"user": "x" * 4000})
        assert refused.status_code == 429
        assert "bodies of all requests together may have 5000 bytes" in refused.json()["error"]["message"]
        assert httpx.post(url + CHAT, json=BRIEF).status_code == 200
        first.close()
        while httpx.post(url + CHAT, json=BRIEF | {"user": "x" * 4000}).status_code != 200:
            time.sleep(0.05)
