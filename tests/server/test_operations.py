"""The list of endpoints, and what follows from it: routes, access, error shapes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from ternvl.server.docs.operation import Operation
from ternvl.server.errors import ERROR_SHAPE
from ternvl.server.guard.auth import ACCESS
from ternvl.server.metrics.middleware import ENDPOINT
from ternvl.server.operations import OPERATIONS, Described, routes
from tests.server.calling import error_of
from tests.server.fakes import scripted_llm, serving


def description(path: str, kind: str = "http") -> dict[str, Any]:
    """What is written into the scope of a request."""
    scope: Scope = {"type": kind, "path": path}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        pass

    async def receive() -> Message:
        raise AssertionError("the body is not read")

    async def send(message: Message) -> None:
        raise AssertionError("nothing is answered")

    asyncio.run(Described(app)(scope, receive, send))
    return {name: value for name, value in scope.items() if name not in ("type", "path")}


@pytest.mark.parametrize(
    ("path", "shape", "access", "endpoint"),
    [
        ("/v1/chat/completions", "openai", "key", "/v1/chat/completions"),
        ("/v1/messages/count_tokens", "anthropic", "key", "/v1/messages/count_tokens"),
        ("/health", "openai", "open", "/health"),
        ("/v1/load_lora_adapter", "openai", "admin", "/v1/load_lora_adapter"),
        ("/v1/models", "openai", "key", "/v1/models"),
        ("/v1/models/one", "openai", "key", "/v1/models/{id}"),
        ("/v1/models/team/one", "openai", "key", "/v1/models/{id}"),
    ],
)
def test_a_request_is_described_by_its_operation(path: str, shape: str, access: str, endpoint: str) -> None:
    assert description(path) == {ERROR_SHAPE: shape, ACCESS: access, ENDPOINT: endpoint}


@pytest.mark.parametrize("path", ["/", "/nope", "/v1/messagesx", "/v2/messages", "/HEALTH"])
def test_an_unknown_path_has_no_description(path: str) -> None:
    assert description(path) == {}


def test_a_path_below_a_known_one_has_its_error_shape_alone() -> None:
    assert description("/v1/messages/batches") == {ERROR_SHAPE: "anthropic"}
    assert description("/v1/chat/completions/1") == {ERROR_SHAPE: "openai"}
    assert description("/v1/models/") == {ERROR_SHAPE: "openai"}


def test_other_scopes_are_passed_on_as_they_are() -> None:
    assert description("/health", kind="websocket") == {}


def test_every_operation_has_a_route() -> None:
    found = [(route.path.replace("{id:path}", "{id}"), route.methods) for route in routes()]
    assert [path for path, _ in found] == [operation.path for operation in OPERATIONS]
    for operation, (_, methods) in zip(OPERATIONS, found, strict=True):
        assert methods == ({"POST"} if operation.method == "post" else {"GET", "HEAD"})


def test_what_is_open_and_what_is_for_administrators() -> None:
    named = {access: {each.path for each in OPERATIONS if each.access == access} for access in ("open", "admin")}
    assert named == {
        "open": {"/health", "/ready"},
        "admin": {
            "/v1/load_lora_adapter",
            "/v1/unload_lora_adapter",
            "/v1/upload_lora_adapter",
            "/debug/state",
            "/debug/profile",
        },
    }


QUICK = {"seconds": "0.1"}
"""Of a profile; others ignore it."""


@pytest.fixture(scope="module")
def guarded() -> Iterator[httpx.Client]:
    with serving(scripted_llm("ok"), api_key="key", admin_key="admin") as url, httpx.Client(base_url=url) as client:
        yield client


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.name)
def test_every_operation_asks_for_the_key_of_its_access(guarded: httpx.Client, operation: Operation) -> None:
    def ask(key: str | None) -> httpx.Response:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return guarded.request(operation.method, operation.path.replace("{id}", "ok"), params=QUICK, headers=headers)

    accepted = {key: ask(key).status_code != 401 for key in (None, "wrong", "key", "admin")}
    opened = operation.access == "open"
    assert accepted == {None: opened, "wrong": opened, "key": operation.access != "admin", "admin": True}
    if not opened:
        refused = ask(None).json()
        assert set(refused) == ({"type", "error"} if operation.error_shape == "anthropic" else {"error"})


def test_a_path_without_v1_is_answered_as_with_it(http: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    for path in ("/chat/completions", "/messages", "/messages/count_tokens"):
        assert http.post(path, json=body).json().keys() == http.post("/v1" + path, json=body).json().keys()
    assert http.post("/completions", json={"prompt": "a", "max_tokens": 1}).json()["object"] == "text_completion"
    assert http.post("/responses/input_tokens", json={"input": "a"}).json()["object"] == "response.input_tokens"
    assert http.get("/models").json()["data"][0]["id"] == "tiny"
    assert http.get("/models/tiny").json()["id"] == "tiny"
    assert http.post("/messages", json={}).json()["type"] == "error"
    assert description("/chat/completions")[ENDPOINT] == "/v1/chat/completions"
    assert description("/load_lora_adapter")[ACCESS] == "admin"


def test_an_unknown_path_is_answered_in_the_shape_of_its_protocol(http: httpx.Client) -> None:
    below = http.post("/v1/messages/batches", json={})
    assert (below.status_code, below.json()["type"]) == (404, "error")
    assert below.json()["error"]["type"] == "not_found_error"
    for path in ("/v1/messagesx", "/v1/embeddings", "/v1/chat/completions/1"):
        other = http.post(path, json={})
        assert (other.status_code, error_of(other)["type"]) == (404, "invalid_request_error")
