"""The description of the API for machines (`/openapi.json`, `/schema/chat-completions.json`) and people (`/docs`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from pydantic import TypeAdapter
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from ternvl import __version__
from ternvl.server.docs import answers
from ternvl.server.docs.operation import JSON, Operation
from ternvl.server.docs.page import render
from ternvl.server.guard.deprecation import Deprecation

REFERENCE = "#/components/schemas/{model}"

_LIMITS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}

_ERROR_TYPES: dict[str, Any] = {"openai": answers.Error, "anthropic": answers.AnthropicError}

_EVENT = {
    "description": "One event of the stream: its name, if it has one, and its data, which is JSON or [DONE].",
    "type": "object",
    "required": ["data"],
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
}

_ERRORS = {
    400: "The body is not JSON, a field is invalid, an image cannot be used, or the prompt is too long.",
    401: "The key is missing or wrong.",
    403: "Loading, unloading or uploading adapters, or looking into the server, is not allowed.",
    404: "The model is not served.",
    405: "The request has a method that the path does not support.",
    408: "The body did not arrive in time.",
    409: "Another profile is being taken.",
    413: "The body or an image is too large.",
    415: "The Content-Type is not application/json, or the body is compressed.",
    429: "Too many requests are waiting; Retry-After says when to try again.",
    500: "The server failed; its log has the cause under the id in the message.",
    503: "The server is stopping or not ready, or its disk cannot store an upload.",
    504: "The answer took longer than the server allows.",
}

_ALLOW = {"description": "The methods that the path supports.", "schema": {"type": "string"}, "required": True}


@cache
def load_schema() -> dict[str, Any]:
    """Return the request schema of Chat Completions as JSON Schema draft-07."""
    return _load("chat-completions.schema.json")


@cache
def load_examples() -> dict[str, Any]:
    """Return for each operation's name an example: its `request`, if it has one, and the embedded model's `answer`."""
    return _load("examples.json")


def _load(name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(files("ternvl.server.docs").joinpath(name).read_text(encoding="utf-8"))
    return value


@cache
def document(operations: tuple[Operation, ...], deprecations: tuple[Deprecation, ...] = ()) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of a list of endpoints, in which what is deprecated is marked."""
    schemas, described = _schemas(operations)
    paths: dict[str, Any] = {}
    for operation in operations:
        rows = [row for row in deprecations if row.path == operation.path]
        paths.setdefault(operation.path, {})[operation.method] = _marked(_describe(operation, schemas), rows)
    security = {"bearer": {"type": "http", "scheme": "bearer"}}
    description = "InternVL3 behind an OpenAI-compatible API."
    return {
        "openapi": "3.1.0",
        "info": {"title": "ternvl", "version": __version__, "description": description},
        "paths": paths,
        "components": {"schemas": described, "securitySchemes": security},
        "security": [{}, {"bearer": []}],
    }


def _schemas(operations: tuple[Operation, ...]) -> tuple[dict[Any, dict[str, Any]], dict[str, Any]]:
    """Return the schema of each type of request and answer, and the definitions that they refer to."""
    types: list[Any] = [each.request for each in operations if each.request]
    types += [each.answer for each in operations if each.answer] + list(_ERROR_TYPES.values())
    inputs = [(str(each), "validation", TypeAdapter(each)) for each in types]
    found, document = TypeAdapter.json_schemas(inputs, ref_template=REFERENCE)  # type: ignore[arg-type]
    schemas = {each: found[str(each), "validation"] for each in types}
    return schemas, _in_words_of_json_schema(document["$defs"])


def _in_words_of_json_schema(value: Any) -> Any:
    """Return schemas in which a limit of a number is called `minimum` or `maximum`.

    Pydantic leaves its own words in the schema of a number that is converted first, as `Integer` is.
    """
    if isinstance(value, list):
        return [_in_words_of_json_schema(item) for item in value]
    if not isinstance(value, dict):
        return value
    words = _LIMITS if value.get("type") in ("integer", "number") else {}
    return {words.get(name, name): _in_words_of_json_schema(item) for name, item in value.items()}


def _describe(operation: Operation, schemas: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    example = load_examples().get(operation.name, {})
    description: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": _operation_id(operation),
        "responses": {"200": _answer(operation, schemas, example)} | _errors(operation, schemas),
    }
    if "{id}" in operation.path:
        description["parameters"] = [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}]
    if operation.parameters:
        description["parameters"] = [*operation.parameters]
    if operation.request:
        content = {
            operation.takes: {"schema": schemas[operation.request]}
            | ({"example": example["request"]} if example else {})
        }
        description["requestBody"] = {"required": True, "content": content}
    return description


def _marked(description: dict[str, Any], rows: Sequence[Deprecation]) -> dict[str, Any]:
    """Mark what is deprecated in the description of an operation, which is returned."""
    if any(not row.field for row in rows):
        description["deprecated"] = True
    if fields := {row.field: {"deprecated": True} for row in rows if row.field}:
        for content in description["requestBody"]["content"].values():
            content["schema"] = content["schema"] | {"properties": fields}
    return description


def _operation_id(operation: Operation) -> str:
    words = operation.path.strip("/").replace("{id}", "one").replace(".json", "")
    return operation.method + "_" + words.replace("/", "_").replace("-", "_").replace(".", "_")


def _answer(operation: Operation, schemas: dict[Any, dict[str, Any]], example: dict[str, Any]) -> dict[str, Any]:
    shown = {"example": example["answer"]} if "answer" in example else {}
    schema = schemas[operation.answer] if operation.answer else {"type": "string"}
    content: dict[str, Any] = {operation.media_type: {"schema": schema} | shown}
    if operation.also:
        content[operation.also] = {"schema": {"type": "object"}}
    if operation.streams:
        content["text/event-stream"] = {"schema": _EVENT}
    return {"description": operation.summary, "content": content}


def _errors(operation: Operation, schemas: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    error = {JSON: {"schema": schemas[_ERROR_TYPES[operation.error_shape]]}}
    errors = {str(status): {"description": _ERRORS[status], "content": error} for status in _statuses(operation)}
    errors["405"]["headers"] = {"Allow": _ALLOW}
    if operation.path in ("/health", "/ready"):  # their 503 has the shape of their 200
        content = {JSON: {"schema": schemas[operation.answer]}}
        errors["503"] = {"description": _ERRORS[503], "content": content}
    return errors


def _statuses(operation: Operation) -> list[int]:
    """Return the error statuses of an endpoint."""
    statuses = {405, 500} if operation.access == "open" else {401, 405, 500}
    if "{id}" in operation.path:
        statuses |= {404}
    if operation.request:
        statuses |= {400, 404, 408, 413, 415, 429, 503, 504}
    if operation.access == "admin":
        statuses |= {403}
    if operation.parameters:
        statuses |= {400, 409}
    return sorted(statuses)


async def page_schema(request: Request) -> Response:
    """Answer `GET /schema/chat-completions.json`: the request schema of Chat Completions."""
    return JSONResponse(load_schema(), media_type="application/schema+json")


async def openapi(request: Request) -> Response:
    """Answer `GET /openapi.json`: the OpenAPI document."""
    return JSONResponse(document(request.app.state.operations, request.app.state.deprecations))


async def docs(request: Request) -> Response:
    """Answer `GET /docs`: the OpenAPI document as a page."""
    return HTMLResponse(render(document(request.app.state.operations, request.app.state.deprecations)))
