"""The gate: its limit, and how it gives requests up."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from ternvl.server.guard.gate import Gate, Gated
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
    if scope["method"] == "GET":
        await send({"type": "http.response.start", "status": 200, "headers": []})
    await asyncio.sleep(3600)


def test_the_gate_has_a_limit_and_counts_work_alone() -> None:
    async def main() -> None:
        gate = Gate(1, retry_after=lambda: 7)
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


def test_a_gate_that_gives_up_answers_who_has_no_answer_yet() -> None:
    async def begun(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(3600)

    async def main() -> None:
        gate = Gate(9, retry_after=lambda: 1)
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
