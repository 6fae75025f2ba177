"""Requests with tools, for the tests of them."""

from __future__ import annotations

from typing import Any

import httpx

CHAT = "/v1/chat/completions"
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
