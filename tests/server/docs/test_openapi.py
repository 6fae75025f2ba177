"""The API's description for machines and for people."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import jsonschema
import pytest

from ternvl.config import ServerConfig
from ternvl.server import create_app
from ternvl.server.docs.openapi import document, load_examples
from ternvl.server.operations import OPERATIONS
from tests.server.fakes import scripted_llm
from tests.server.page import page_schema


def test_the_served_schema_is_the_pages_with_its_undefined_parts_defined(http: httpx.Client) -> None:
    served, page = http.get("/schema/chat-completions.json").json(), page_schema()
    jsonschema.Draft7Validator.check_schema(served)
    assert served["$schema"] == page["$schema"]
    assert served["properties"]["messages"].pop("minItems") == 1  # docs/decisions.md tells why
    assert (served["required"], served["properties"]) == (page["required"], page["properties"])
    defined, before = served["components"]["schemas"], page["components"]["schemas"]
    extended = {"Message", "AssistantMessage", "AssistantMessageWithoutToolCalls"}  # for answers that are sent back
    assert {name for name in before if defined[name] != before[name]} == extended
    references = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(served)))
    assert references <= defined.keys()


def resolves(value: Any, root: dict[str, Any]) -> None:
    """Every reference leads somewhere."""
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        resolves(item, root)
    if isinstance(value, dict) and isinstance(value.get("$ref"), str):
        place: Any = root
        for part in value["$ref"].removeprefix("#/").split("/"):
            place = place[part]


def test_the_openapi_document_tells_of_every_route(http: httpx.Client) -> None:
    told = http.get("/openapi.json").json()
    assert told["openapi"].startswith("3.1")
    resolves(told, told)
    app = create_app(scripted_llm("ok"), ServerConfig(playground=False))  # a page for people is no part of the API
    routes = {re.sub(r"\{\w+:path\}", "{id}", route.path) for route in app.routes}  # type: ignore[attr-defined]
    assert set(told["paths"]) == routes
    ids = [told["paths"][operation.path][operation.method]["operationId"] for operation in OPERATIONS]
    assert len(set(ids)) == len(OPERATIONS)


@pytest.mark.parametrize("path", sorted({each.path for each in OPERATIONS}))
def test_a_method_that_is_not_described_is_answered_as_described(http: httpx.Client, path: str) -> None:
    told = document(OPERATIONS)
    described = {method: each["responses"]["405"] for method, each in told["paths"][path].items()}
    supported = {method.upper() for method in described} | ({"HEAD"} if "get" in described else set())
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE"} - supported:
        response = http.request(method, path.replace("{id}", "tiny"))
        assert response.status_code == 405, method
        assert set(response.headers["Allow"].split(", ")) == supported
        for each in described.values():
            schema = each["content"]["application/json"]["schema"]
            jsonschema.Draft202012Validator(schema | {"components": told["components"]}).validate(response.json())
            assert each["headers"]["Allow"]["required"]


SHOWN = [each for each in OPERATIONS if each.request and each.name in load_examples()]


@pytest.mark.parametrize("operation", SHOWN, ids=lambda each: each.path)
def test_the_examples_are_answered_and_match_their_schema(http: httpx.Client, operation: Any) -> None:
    told = document(OPERATIONS)["paths"][operation.path][operation.method]
    example = told["requestBody"]["content"]["application/json"]["example"]
    root = {"components": document(OPERATIONS)["components"]}
    reference = told["requestBody"]["content"]["application/json"]["schema"]
    jsonschema.Draft202012Validator(root | reference).validate(example)
    response = http.post(operation.path, json={**example, "model": "tiny"})
    assert response.status_code == 200, response.text
    assert "x-ternvl-ignored-fields" not in response.headers
    answer = told["responses"]["200"]["content"]["application/json"]
    jsonschema.Draft202012Validator(root | answer["schema"]).validate(response.json())
    assert keys(response.json()) == keys(answer["example"])


def keys(value: Any) -> set[str]:
    """The names of the fields of an answer, or of the answers of a list."""
    return set().union(*value) if isinstance(value, list) else set(value)


def test_the_docs_page_loads_nothing_else(http: httpx.Client) -> None:
    page = http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert not re.search(r"<script|src=|<link|https?://(?!example\.com|127\.0\.0\.1)[^\s\"&<]*\.(js|css)", page.text)
    for operation in OPERATIONS:
        assert operation.path in page.text
