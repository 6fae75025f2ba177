"""`POST /tokenize` and `POST /detokenize`, in vLLM's form."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Self

from pydantic import Field, model_validator
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ternvl.errors import RequestError
from ternvl.llm import LLM
from ternvl.prompt.tokenizer import Tokenizer
from ternvl.server.endpoint import read, serving_of
from ternvl.server.protocols.chat import build
from ternvl.server.protocols.chat_schema import ChatRequest, Message, ProcessorOptions, ToolDefinition
from ternvl.server.schema.fields import served_values_without
from ternvl.server.schema.sampling import TokenId
from ternvl.server.schema.types import Schema, refuse

TOKENIZE_VALUES = served_values_without(add_special_tokens=(True, False))
"""The tokenizer has no special tokens to add, with or without this field."""


class TokenizeRequest(Schema):
    """The body of `POST /tokenize`: a text, or a conversation as Chat Completions has it."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(fail_fast=True)] | None = None
    tools: Annotated[list[ToolDefinition], Field(fail_fast=True)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    mm_processor_kwargs: ProcessorOptions | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise refuse("prompt", "or messages is required, and not both")
        return self

    def to_chat(self) -> ChatRequest:
        """The request for an answer to the same conversation."""
        fields = self.model_dump(exclude={"prompt", "return_token_strs"}, exclude_unset=True)
        return ChatRequest.model_validate(fields)


class DetokenizeRequest(Schema):
    """The body of `POST /detokenize`."""

    model: str | None = None
    tokens: Annotated[list[TokenId], Field(fail_fast=True)]


def _token_ids(llm: LLM, request: TokenizeRequest) -> list[int]:
    if request.prompt is not None:
        return llm.tokenizer.encode_text(request.prompt)
    return list(build(llm, request.to_chat()).token_ids)


def _has_images(request: TokenizeRequest) -> bool:
    return request.messages is not None and request.to_chat().has_images


async def tokenize(request: Request) -> Response:
    """`POST /tokenize`."""
    serving = serving_of(request)
    wanted, headers = await read(request, TokenizeRequest, TOKENIZE_VALUES)
    serving.resolve(wanted.model)
    work = partial(_token_ids, serving.llm, wanted)
    token_ids = await serving.build_prompt(work, has_images=_has_images(wanted), deadline=serving.deadline())
    answer: dict[str, Any] = {
        "count": len(token_ids),
        "max_model_len": serving.llm.engine.config.max_model_len,
        "tokens": token_ids,
        "token_strs": _strings(serving.llm.tokenizer, token_ids) if wanted.return_token_strs else None,
    }
    return JSONResponse(answer, headers=headers)


async def detokenize(request: Request) -> Response:
    """`POST /detokenize`: all tokens show, also those that never do in an answer."""
    serving = serving_of(request)
    wanted, headers = await read(request, DetokenizeRequest)
    serving.resolve(wanted.model)
    vocab_size = serving.llm.tokenizer.vocab_size
    for index, token_id in enumerate(wanted.tokens):
        if token_id >= vocab_size:
            path = f"tokens[{index}]"
            raise RequestError(f"{path} is {token_id}, but the vocabulary ends at {vocab_size - 1}.", param=path)
    data = b"".join(map(serving.llm.tokenizer.token_bytes, wanted.tokens))
    return JSONResponse({"prompt": data.decode("utf-8", errors="replace")}, headers=headers)


def _strings(tokenizer: Tokenizer, token_ids: list[int]) -> list[str]:
    return [tokenizer.token_bytes(token_id).decode("utf-8", errors="replace") for token_id in token_ids]
