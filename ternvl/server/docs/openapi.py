"""The description of the API for machines (`/openapi.json`, `/schema/chat-completions.json`) and people (`/docs`)."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from ternvl import __version__
from ternvl.server.docs.operation import JSON, Operation
from ternvl.server.docs.page import render

REFERENCE = "#/components/schemas/{model}"

_ERRORS = {
    400: "The body is not JSON, a field is invalid, an image cannot be used, or the prompt is too long.",
    401: "The key is missing or wrong.",
    404: "The model is not served.",
    408: "The body did not arrive in time.",
    403: "Loading, unloading or uploading adapters is not allowed.",
    413: "The body or an image is too large.",
    415: "The Content-Type is not application/json, or the body is compressed.",
    429: "Too many requests are waiting; Retry-After says when to try again.",
    500: "The server failed; its log has the cause under the id in the message.",
    503: "The server is stopping.",
    504: "The answer took longer than the server allows.",
}


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
def document(operations: tuple[Operation, ...]) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of a list of endpoints."""
    models = [operation.request for operation in operations if operation.request]
    _, described = models_json_schema([(model, "validation") for model in models], ref_template=REFERENCE)
    paths: dict[str, Any] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method] = _describe(operation)
    security = {"bearer": {"type": "http", "scheme": "bearer"}}
    description = "InternVL3 behind an OpenAI-compatible API."
    return {
        "openapi": "3.1.0",
        "info": {"title": "ternvl", "version": __version__, "description": description},
        "paths": paths,
        "components": {"schemas": described["$defs"] | _error_schemas(), "securitySchemes": security},
        "security": [{}, {"bearer": []}],
    }


def _describe(operation: Operation) -> dict[str, Any]:
    example = load_examples().get(operation.name, {})
    description: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": _operation_id(operation),
        "responses": {"200": _answer(operation, example)} | _errors(operation),
    }
    if "{id}" in operation.path:
        description["parameters"] = [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}]
    if operation.request:
        schema = {"$ref": REFERENCE.format(model=operation.request.__name__)}
        content = {operation.takes: {"schema": schema} | ({"example": example["request"]} if example else {})}
        description["requestBody"] = {"required": True, "content": content}
    return description


def _operation_id(operation: Operation) -> str:
    words = operation.path.strip("/").replace("{id}", "one").replace(".json", "")
    return operation.method + "_" + words.replace("/", "_").replace("-", "_").replace(".", "_")


def _answer(operation: Operation, example: dict[str, Any]) -> dict[str, Any]:
    answer = example.get("answer")
    shown = {} if answer is None else {"example": answer}
    content: dict[str, Any] = {operation.media_type: {"schema": schema_of(answer)} | shown}
    if operation.streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    return {"description": operation.summary, "content": content}


def _errors(operation: Operation) -> dict[str, Any]:
    model = "AnthropicError" if operation.error_shape == "anthropic" else "Error"
    content = {JSON: {"schema": {"$ref": REFERENCE.format(model=model)}}}
    statuses = _ERRORS if operation.request else {status: _ERRORS[status] for status in (401, 500)}
    return {str(status): {"description": text, "content": content} for status, text in statuses.items()}


def schema_of(value: Any) -> dict[str, Any]:
    """Return a schema that an example matches, with its types and the keys of its objects."""
    match value:
        case None:
            return {}
        case bool():
            return {"type": "boolean"}
        case int() | float():
            return {"type": "number"}
        case str():
            return {"type": "string"}
        case list():
            return {"type": "array", "items": schema_of(value[0]) if value else {}}
    return {
        "type": "object",
        "required": list(value),
        "properties": {name: schema_of(item) for name, item in value.items()},
    }


def _error_schemas() -> dict[str, Any]:
    text, nullable = {"type": "string"}, {"type": ["string", "null"]}
    error = {
        "type": "object",
        "required": ["message", "type", "param", "code"],
        "properties": {"message": text, "type": text, "param": nullable, "code": nullable},
    }
    anthropic = {"type": "object", "required": ["type", "message"], "properties": {"type": text, "message": text}}
    return {
        "Error": {"type": "object", "required": ["error"], "properties": {"error": error}},
        "AnthropicError": {
            "type": "object",
            "required": ["type", "error"],
            "properties": {"type": {"const": "error"}, "error": anthropic},
        },
    }


async def page_schema(request: Request) -> Response:
    """Answer `GET /schema/chat-completions.json`: the request schema of Chat Completions."""
    return JSONResponse(load_schema(), media_type="application/schema+json")


async def openapi(request: Request) -> Response:
    """Answer `GET /openapi.json`: the OpenAPI document."""
    return JSONResponse(document(request.app.state.operations))


async def docs(request: Request) -> Response:
    """Answer `GET /docs`: the OpenAPI document as a page."""
    return HTMLResponse(render(document(request.app.state.operations)))
