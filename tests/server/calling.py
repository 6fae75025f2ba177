"""Requests with tools, and what answers hold."""

from __future__ import annotations

from typing import Any

import httpx

CHAT = "/v1/chat/completions"
BRIEF = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
HI = {"messages": [{"role": "user", "content": "Where is it?"}]}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 6}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city"],
    "additionalProperties": False,
}


def tool(name: str, parameters: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters or PARAMETERS, **more}}


def ask(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    response = client.post(CHAT, json={**HI, "max_tokens": 500, "seed": 1, **fields})
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error of an answer, which has exactly OpenAI's keys."""
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    return dict(body["error"])


def events(response: httpx.Response) -> list[str]:
    assert response.headers["content-type"].startswith("text/event-stream")
    pieces = response.text.split("\n\n")
    assert pieces.pop() == ""
    assert all(piece.startswith("data: ") for piece in pieces)
    return [piece.removeprefix("data: ") for piece in pieces]


def refusal(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    """The error of a request that is answered with 400."""
    response = client.post(CHAT, json={**HI, **fields})
    assert response.status_code == 400, response.text
    return error_of(response)
