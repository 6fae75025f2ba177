"""`POST /tokenize` and `POST /detokenize`, in vLLM's form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import Field, model_validator
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ternvl.answer.ask import Ask
from ternvl.errors import RequestError
from ternvl.params import SamplingParams
from ternvl.prompt.tokenizer import Tokenizer
from ternvl.server.answering import prompt_of
from ternvl.server.endpoint import read, serving_of
from ternvl.server.protocols.chat_schema import ChatMessage, ChatRequest, ToolDefinition
from ternvl.server.schema.fields import validate
from ternvl.server.schema.images import PlacedImages, TileFields
from ternvl.server.schema.sampling import TokenId
from ternvl.server.schema.types import Schema, one_of, refuse
from ternvl.server.schema.videos import VideoFields


class TokenizeRequest(TileFields, VideoFields, PlacedImages):
    """The body of `POST /tokenize`: a text, or a conversation with the fields of Chat Completions."""

    model_config = one_of({"prompt": {"type": "string"}}, {"messages": {"type": "array"}})

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)] | None = None
    tools: Annotated[list[ToolDefinition], Field(fail_fast=True)] | None = None
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
        "token_strs": _strings(llm.tokenizer, token_ids) if wanted.return_token_strs else None,
    }
    return JSONResponse(answer, headers=headers)


async def detokenize(request: Request) -> Response:
    """Answer `POST /detokenize`: the text of token ids, including tokens that an answer never shows."""
    serving = serving_of(request)
    wanted, headers = await read(request, DetokenizeRequest, "tokens")
    serving.names.resolve(wanted.model)
    vocab_size = serving.llm.tokenizer.vocab_size
    for index, token_id in enumerate(wanted.tokens):
        if token_id >= vocab_size:
            path = f"tokens[{index}]"
            raise RequestError(f"{path} is {token_id}, but the vocabulary ends at {vocab_size - 1}.", param=path)
    data = b"".join(map(serving.llm.tokenizer.token_bytes, wanted.tokens))
    return JSONResponse({"prompt": data.decode("utf-8", errors="replace")}, headers=headers)


def _strings(tokenizer: Tokenizer, token_ids: Sequence[int]) -> list[str]:
    return [tokenizer.token_bytes(token_id).decode("utf-8", errors="replace") for token_id in token_ids]
