"""`POST /tokenize`, `POST /detokenize`, and `/render` of both kinds of completions, in vLLM's form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import Field, model_validator
from starlette.requests import Request
from starlette.responses import Response

from ternvl.answer.ask import Ask
from ternvl.engine.cache.block_keys import adapter_id, own_images, salt_id
from ternvl.errors import RequestError
from ternvl.params import SamplingParams
from ternvl.prompt.tokenizer import Tokenizer
from ternvl.server.answering import new_id, prompt_of, rendered
from ternvl.server.docs.answers import ImageFeatures, Placeholder, RenderedPrompt
from ternvl.server.endpoint import read, serving_of
from ternvl.server.long_json import json_response
from ternvl.server.protocols.chat_schema import ChatMessage, ChatRequest, ToolDefinition
from ternvl.server.protocols.completions_schema import CompletionRequest
from ternvl.server.schema.fields import validate
from ternvl.server.schema.images import PlacedImages, TileFields
from ternvl.server.schema.sampling import TokenId
from ternvl.server.schema.types import MAX_MESSAGES, MAX_TOOLS, Schema, one_of, refuse
from ternvl.server.schema.videos import VideoFields
from ternvl.server.serving import Serving
from ternvl.types import ImageSpan, Prompt


class TokenizeRequest(TileFields, VideoFields, PlacedImages):
    """The body of `POST /tokenize`: a text, or a conversation with the fields of Chat Completions."""

    model_config = one_of({"prompt": {"type": "string"}}, {"messages": {"type": "array"}})

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)] | None = None
    tools: Annotated[list[ToolDefinition], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise refuse("prompt", "or messages is required, but not both")
        return self

    def to_ask(self, defaults: SamplingParams) -> Ask:
        """Return an ask with the same prompt."""
        if self.prompt is not None:
            return Ask(input=self.prompt, params=defaults, path="prompt")
        fields = self.model_dump(exclude={"prompt", "return_token_strs"}, exclude_unset=True)
        return validate(ChatRequest, fields).to_ask(defaults)


class DetokenizeRequest(Schema):
    """The body of `POST /detokenize`: token ids."""

    model: str | None = None
    tokens: Annotated[list[TokenId], Field(fail_fast=True)]


async def tokenize(request: Request) -> Response:
    """Answer `POST /tokenize`: the token ids of a text or a conversation."""
    serving = serving_of(request)
    wanted, headers = await read(request, TokenizeRequest, "tokens")
    llm, token_ids = serving.llm, (await prompt_of(serving, wanted)).token_ids
    answer: dict[str, Any] = {
        "count": len(token_ids),
        "max_model_len": llm.engine.config.max_model_len,
        "tokens": token_ids,
        "token_strs": None,
    }
    if wanted.return_token_strs:
        answer["token_strs"] = await serving.threads.run(lambda: _strings(llm.tokenizer, token_ids))
    return await json_response(answer, headers)


async def detokenize(request: Request) -> Response:
    """Answer `POST /detokenize`: the text of token ids, including tokens that an answer never shows."""
    serving = serving_of(request)
    wanted, headers = await read(request, DetokenizeRequest, "tokens")
    serving.names.resolve(wanted.model)
    text = await serving.threads.run(lambda: _text(serving.llm.tokenizer, wanted.tokens))
    return await json_response({"prompt": text}, headers)


async def render_chat(request: Request) -> Response:
    """Answer `POST /v1/chat/completions/render`: the prompt of a request as the KV cache knows it, and no answer."""
    serving = serving_of(request)
    wanted, headers = await read(request, ChatRequest, "chat")
    (ask,), name = await rendered(serving, wanted, lambda defaults: [wanted.to_ask(defaults)])
    return await json_response(await _rendered_prompt(serving, ask, name, "chatcmpl"), headers)


async def render_completions(request: Request) -> Response:
    """Answer `POST /v1/completions/render`: the same for each of the prompts, in their order."""
    serving = serving_of(request)
    wanted, headers = await read(request, CompletionRequest, "completions")
    asks, name = await rendered(serving, wanted, wanted.to_asks)
    return await json_response([await _rendered_prompt(serving, ask, name, "cmpl") for ask in asks], headers)


async def _rendered_prompt(serving: Serving, ask: Ask, name: str, kind: str) -> RenderedPrompt:
    """Return all that names the prompt's blocks in the KV cache. `kind` begins the ids of its answers."""
    assert isinstance(ask.input, Prompt)
    async with serving.adapters.lease(ask.adapter) as adapter:
        images = own_images(ask.input, adapter, ask.cache_salt)
    return {
        "request_id": new_id(kind),
        "model": name,
        "token_ids": list(ask.input.token_ids),
        "features": _features(images),
        "lora_name": ask.adapter,
        "lora_id": adapter_id(adapter),
        "cache_salt": salt_id(ask.cache_salt),
    }


def _features(images: Sequence[ImageSpan]) -> ImageFeatures | None:
    if not images:
        return None
    places: list[Placeholder] = [{"offset": image.start, "length": image.num_tokens} for image in images]
    return {"mm_hashes": {"image": [image.digest.hex() for image in images]}, "mm_placeholders": {"image": places}}


def _text(tokenizer: Tokenizer, token_ids: Sequence[int]) -> str:
    for index, token_id in enumerate(token_ids):
        if token_id >= tokenizer.vocab_size:
            path = f"tokens[{index}]"
            message = f"{path} is {token_id}, but the vocabulary ends at {tokenizer.vocab_size - 1}."
            raise RequestError(message, param=path)
    return b"".join(map(tokenizer.token_bytes, token_ids)).decode("utf-8", errors="replace")


def _strings(tokenizer: Tokenizer, token_ids: Sequence[int]) -> list[str]:
    return [tokenizer.token_bytes(token_id).decode("utf-8", errors="replace") for token_id in token_ids]
