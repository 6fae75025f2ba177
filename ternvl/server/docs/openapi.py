"""The API described for machines (`/openapi.json`, `/schema/chat-completions.json`) and for people (`/docs`)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from ternvl import __version__
from ternvl.server.docs.page import render
from ternvl.server.protocols.adapters import LoadRequest, UnloadRequest, UploadForm
from ternvl.server.protocols.chat_schema import ChatRequest
from ternvl.server.protocols.completions import CompletionRequest
from ternvl.server.protocols.messages_schema import Conversation, MessagesRequest
from ternvl.server.protocols.responses_schema import ResponseRequest
from ternvl.server.protocols.tokens import DetokenizeRequest, TokenizeRequest

JSON = "application/json"
FORM = "multipart/form-data"
REFERENCE = "#/components/schemas/{model}"

_ERRORS = {
    400: "The body is no JSON, a field breaks a rule, an image cannot be had, or the prompt does not fit the context.",
    401: "The key is missing or wrong.",
    404: "The model is not served.",
    408: "The body did not arrive in time.",
    403: "Adapters are not loaded, unloaded or uploaded here.",
    413: "The body or an image is too large.",
    415: "The Content-Type is not application/json, or the body is compressed.",
    429: "Too much work is waiting; Retry-After says when to ask again.",
    500: "The server's fault; the message has the id under which the log has the cause.",
    503: "The server is stopping.",
    504: "The answer took longer than the server allows.",
}


@dataclass(frozen=True)
class Operation:
    """One endpoint."""

    method: str
    path: str
    summary: str
    request: type[BaseModel] | None = None
    streams: bool = False
    media_type: str = JSON
    takes: str = JSON

    @property
    def name(self) -> str:
        return f"{self.method.upper()} {self.path}"


OPERATIONS = (
    Operation("post", "/v1/chat/completions", "Answers a conversation.", ChatRequest, streams=True),
    Operation("post", "/v1/completions", "Goes on with plain prompts.", CompletionRequest, streams=True),
    Operation("post", "/v1/responses", "OpenAI's Responses, without state.", ResponseRequest, streams=True),
    Operation("post", "/v1/messages", "Anthropic's Messages.", MessagesRequest, streams=True),
    Operation("post", "/v1/messages/count_tokens", "Counts the tokens of a conversation.", Conversation),
    Operation("post", "/v1/load_lora_adapter", "Loads a LoRA adapter from a folder.", LoadRequest),
    Operation("post", "/v1/unload_lora_adapter", "Unloads a LoRA adapter.", UnloadRequest),
    Operation("post", "/v1/upload_lora_adapter", "Stores and loads a LoRA adapter.", UploadForm, takes=FORM),
    Operation("post", "/tokenize", "The token ids of a text or a conversation.", TokenizeRequest),
    Operation("post", "/detokenize", "The text of token ids.", DetokenizeRequest),
    Operation("get", "/v1/models", "The served models."),
    Operation("get", "/v1/models/{id}", "One served model."),
    Operation("get", "/health", "Whether the process is alive; needs no key."),
    Operation("get", "/ready", "Whether a request that came now would be taken; needs no key."),
    Operation("get", "/version", "The version of the server."),
    Operation("get", "/metrics", "Measurements for Prometheus.", media_type="text/plain"),
    Operation("get", "/schema/chat-completions.json", "The request schema of Chat Completions (draft-07)."),
    Operation("get", "/openapi.json", "This document."),
    Operation("get", "/docs", "This document for people.", media_type="text/html"),
)


@cache
def load_schema() -> dict[str, Any]:
    """The request schema of Chat Completions as JSON Schema draft-07."""
    return _load("chat-completions.schema.json")


@cache
def load_examples() -> dict[str, Any]:
    """By an operation's name: a `request`, where it takes one, and the `answer` that the embedded model gave."""
    return _load("examples.json")


def _load(name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(files("ternvl.server.docs").joinpath(name).read_text(encoding="utf-8"))
    return value


@cache
def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    models = [operation.request for operation in OPERATIONS if operation.request]
    _, described = models_json_schema([(model, "validation") for model in models], ref_template=REFERENCE)
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
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
    is_anthropic = operation.path.startswith("/v1/messages")
    content = {JSON: {"schema": {"$ref": REFERENCE.format(model="AnthropicError" if is_anthropic else "Error")}}}
    statuses = _ERRORS if operation.request else {status: _ERRORS[status] for status in (401, 500)}
    return {str(status): {"description": text, "content": content} for status, text in statuses.items()}


def schema_of(value: Any) -> dict[str, Any]:
    """A schema of what an example is one of: types, and the keys that its objects have."""
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
    """`GET /schema/chat-completions.json`."""
    return JSONResponse(load_schema(), media_type="application/schema+json")


async def openapi(request: Request) -> Response:
    """`GET /openapi.json`."""
    return JSONResponse(document())


async def docs(request: Request) -> Response:
    """`GET /docs`."""
    return HTMLResponse(render(document()))
