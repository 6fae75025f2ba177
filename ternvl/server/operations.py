"""The list of endpoints.

Routes, access, error shapes, labels of metrics, `/openapi.json`, `/docs` and `docs/endpoints.md` are generated from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ternvl.server import probes
from ternvl.server.debug import endpoints as debug
from ternvl.server.docs import answers, message_answers, openapi, text_answers
from ternvl.server.docs.operation import JSON, Operation
from ternvl.server.errors import ERROR_SHAPE, guarded
from ternvl.server.guard.auth import ACCESS
from ternvl.server.metrics.middleware import ENDPOINT
from ternvl.server.playground import pages
from ternvl.server.protocols import adapters, chat, completions, messages, responses, tokens
from ternvl.server.protocols.chat_schema import ChatRequest
from ternvl.server.protocols.completions_schema import CompletionRequest
from ternvl.server.protocols.messages_schema import CountTokensRequest, MessagesRequest
from ternvl.server.protocols.responses_schema import InputTokensRequest, ResponseRequest

FORM = "multipart/form-data"

OPERATIONS = (
    Operation(
        "post", "/v1/chat/completions", chat.chat_completions,
        summary="Answers a conversation.", request=ChatRequest, streams=True,
        answer=text_answers.ChatCompletion,
    ),
    Operation(
        "post", "/v1/chat/completions/render", tokens.render_chat,
        summary="Returns the prompt of a conversation as the KV cache knows it.", request=ChatRequest,
        answer=answers.RenderedPrompt,
    ),
    Operation(
        "post", "/v1/completions", completions.completions,
        summary="Continues plain prompts.", request=CompletionRequest, streams=True,
        answer=text_answers.TextCompletion,
    ),
    Operation(
        "post", "/v1/completions/render", tokens.render_completions,
        summary="Returns plain prompts as the KV cache knows them.", request=CompletionRequest,
        answer=list[answers.RenderedPrompt],
    ),
    Operation(
        "post", "/v1/responses", responses.responses,
        summary="Answers a conversation in the form of OpenAI's Responses, without state.",
        request=ResponseRequest, streams=True,
        answer=text_answers.OpenAIResponse,
    ),
    Operation(
        "post", "/v1/responses/input_tokens", responses.input_tokens,
        summary="Counts the tokens of a conversation in the form of Responses.", request=InputTokensRequest,
        answer=answers.InputTokens,
    ),
    Operation(
        "post", "/v1/messages", messages.messages,
        summary="Answers a conversation in the form of Anthropic's Messages.",
        request=MessagesRequest, streams=True, error_shape="anthropic",
        answer=message_answers.AnthropicMessage,
    ),
    Operation(
        "post", "/v1/messages/count_tokens", messages.count_tokens,
        summary="Counts the tokens of a conversation.", request=CountTokensRequest, error_shape="anthropic",
        answer=answers.TokenCount,
    ),
    Operation(
        "post", "/v1/load_lora_adapter", adapters.load,
        summary="Loads a LoRA adapter from a folder.", request=adapters.LoadRequest, access="admin",
        answer=answers.ModelCard,
    ),
    Operation(
        "post", "/v1/unload_lora_adapter", adapters.unload,
        summary="Unloads a LoRA adapter.", request=adapters.UnloadRequest, access="admin",
        answer=answers.UnloadedAdapter,
    ),
    Operation(
        "post", "/v1/upload_lora_adapter", adapters.upload,
        summary="Stores and loads a LoRA adapter.", request=adapters.UploadForm, access="admin", takes=FORM,
        answer=answers.ModelCard,
    ),
    Operation(
        "post", "/tokenize", tokens.tokenize,
        summary="Returns the token ids of a text or a conversation.", request=tokens.TokenizeRequest,
        answer=answers.Tokens,
    ),
    Operation(
        "post", "/detokenize", tokens.detokenize,
        summary="Returns the text of token ids.", request=tokens.DetokenizeRequest,
        answer=answers.Text,
    ),
    Operation(
        "get", "/v1/models", probes.models,
        summary="Lists the served models.",
        answer=answers.ModelList,
    ),
    Operation(
        "get", "/v1/models/{id}", probes.model,
        summary="Describes one served model.",
        answer=answers.ModelCard,
    ),
    Operation(
        "get", "/health", probes.health,
        summary="Says whether the process is alive; needs no key.", access="open",
        answer=answers.Health,
    ),
    Operation(
        "get", "/ready", probes.ready,
        summary="Says whether a request would be accepted now; needs no key.", access="open",
        answer=answers.Readiness,
    ),
    Operation(
        "get", "/version", probes.version,
        summary="Returns the version of the server.",
        answer=answers.Version,
    ),
    Operation(
        "get", "/metrics", probes.metrics,
        summary="Returns the metrics for Prometheus.", media_type="text/plain", access="metrics",
    ),
    Operation(
        "get", "/debug/state", debug.state,
        summary="Says what the server does now.", access="admin",
        answer=dict[str, Any],
    ),
    Operation(
        "get", "/debug/profile", debug.profile,
        summary="Samples where the time of the process goes.", access="admin", parameters=debug.PARAMETERS,
        media_type="text/plain", also=JSON,
    ),
    Operation(
        "get", "/schema/chat-completions.json", openapi.page_schema,
        summary="Returns the request schema of Chat Completions (draft-07).",
        answer=dict[str, Any], media_type="application/schema+json",
    ),
    Operation(
        "get", "/openapi.json", openapi.openapi,
        summary="Describes the API for machines.",
        answer=dict[str, Any],
    ),
    Operation(
        "get", "/docs", openapi.docs,
        summary="Shows the description of the API as a page.", media_type="text/html",
    ),
)  # fmt: skip

PAGES = (
    Operation(
        "get", "/", pages.page,
        summary="Shows the playground; needs no key.", access="open", media_type="text/html",
    ),
    Operation(
        "get", "/playground/{id}", pages.file,
        summary="Returns a file of the playground; needs no key.", access="open", media_type="text/javascript",
    ),
)  # fmt: skip
"""The pages for people that are not part of the API, so `/openapi.json` and `/docs` do not list them."""


def routes(operations: Sequence[Operation] = OPERATIONS) -> list[Route]:
    """Return the route of each operation."""
    return [
        Route(each.path.replace("{id}", "{id:path}"), guarded(each.endpoint), methods=[each.method.upper()])
        for each in operations
    ]


class Described:
    """ASGI middleware that writes the access, the error shape and the path of the endpoint into a request's scope.

    The paths below `/v1` are also answered without `/v1`, because some clients' base URL has none.
    """

    def __init__(self, app: ASGIApp, operations: Sequence[Operation] = OPERATIONS) -> None:
        self._app = app
        self._exact = {each.path: each for each in operations if "{" not in each.path}
        self._prefixes = {each.path.split("{")[0]: each for each in operations if "{" in each.path}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Describe the endpoint in the scope, and pass the request on."""
        if scope["type"] == "http":
            path = scope["path"]
            if self._operation(path) is None and self._operation("/v1" + path) is not None:
                scope["path"] = path = "/v1" + path
            scope.update(self._description(path))
        await self._app(scope, receive, send)

    def _operation(self, path: str) -> Operation | None:
        return self._exact.get(path) or next(
            (each for prefix, each in self._prefixes.items() if path.startswith(prefix) and path != prefix), None
        )

    def _description(self, path: str) -> dict[str, str]:
        operation = self._operation(path)
        if operation is None:  # an unknown path below an endpoint has that endpoint's error shape
            parent = next((each for each in self._exact.values() if path.startswith(each.path + "/")), None)
            return {ERROR_SHAPE: parent.error_shape} if parent else {}
        return {ERROR_SHAPE: operation.error_shape, ACCESS: operation.access, ENDPOINT: operation.path}
