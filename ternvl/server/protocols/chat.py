"""`POST /v1/chat/completions`: turns deltas into the chunks of a stream, and chunks into a whole answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ternvl.answer.delta import Delta
from ternvl.output.tool_calls import ToolCallDelta
from ternvl.prompt.tokenizer import Tokenizer
from ternvl.server.answering import answer, new_id
from ternvl.server.endpoint import openai_form, read, send, serving_of
from ternvl.server.protocols import logprobs
from ternvl.server.protocols.chat_schema import ChatRequest
from ternvl.server.serving import Serving
from ternvl.types import Prompt, PromptLogprobs

ChatChunk = dict[str, Any]


@dataclass
class ChatAnswer:
    """An answer that is being generated: the fields that all its chunks share, and the counts so far."""

    id: str
    model: str
    fingerprint: str
    prompt: Prompt
    tokenizer: Tokenizer
    with_logprobs: bool
    created: int = field(default_factory=lambda: int(time.time()))
    num_tokens: int = 0
    num_cached_tokens: int = 0
    fields: dict[str, Any] = field(default_factory=dict)
    """Further fields of the last chunk."""

    def __post_init__(self) -> None:
        self._introduced: set[int] = set()

    @property
    def usage(self) -> dict[str, Any]:
        """The numbers of tokens of the prompt and of all choices so far."""
        details = {"cached_tokens": self.num_cached_tokens, "image_tokens": self.prompt.num_image_tokens}
        return {
            "prompt_tokens": self.prompt.num_tokens,
            "completion_tokens": self.num_tokens,
            "total_tokens": self.prompt.num_tokens + self.num_tokens,
            "prompt_tokens_details": details,
        }

    def chunk(self, *choices: dict[str, Any]) -> ChatChunk:
        """Return a `chat.completion.chunk` with some choices."""
        return {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": list(choices),
        }

    def take_prompt(self, values: PromptLogprobs, num_top: int) -> None:
        """Take the log probabilities of the prompt. This takes a while if the prompt is long."""
        self.fields = {"prompt_logprobs": logprobs.of_prompt(self.tokenizer, self.prompt, values, num_top)}

    def to_chunks(self, delta: Delta) -> Iterator[ChatChunk]:
        """Yield the chunks of a delta: one each for reasoning, text, every piece of a call and the finish reason.

        Parts that the delta does not have are left out.
        """
        self.num_tokens += delta.num_tokens
        self.num_cached_tokens = max(self.num_cached_tokens, delta.num_cached_tokens)
        listed = [logprobs.entry(self.tokenizer, *item) for item in delta.logprobs]
        added: list[dict[str, Any]] = [{"tool_calls": [_tool_call(call)]} for call in delta.tool_calls]
        if delta.text or (listed and not added and not delta.reasoning):
            added.insert(0, {"content": delta.text} if delta.text else {})
        if delta.reasoning:
            added.insert(0, {"reasoning_content": delta.reasoning})
        for content in added:
            yield self.chunk(self._choice(delta.index, self._with_role(delta.index, content), listed, None))
            listed = []
        if delta.finish_reason:
            last = self._with_role(delta.index, {})
            yield self.chunk(self._choice(delta.index, last, [], delta.finish_reason))

    def _with_role(self, index: int, content: dict[str, Any]) -> dict[str, Any]:
        """Return the content with the role of the message if it is the first of choice `index`."""
        if index in self._introduced:
            return content
        self._introduced.add(index)
        return {"role": "assistant", "content": None if "tool_calls" in content else "", **content}

    def _choice(
        self, index: int, delta: dict[str, Any], listed: list[dict[str, Any]], finish_reason: str | None
    ) -> dict[str, Any]:
        shown = {"content": listed, "refusal": None} if self.with_logprobs and finish_reason is None else None
        return {"index": index, "delta": delta, "logprobs": shown, "finish_reason": finish_reason}


def _tool_call(call: ToolCallDelta) -> dict[str, Any]:
    if call.name is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}


async def complete(serving: Serving, request: ChatRequest) -> AsyncGenerator[ChatChunk]:
    """Yield the chunks of the answer. The last chunk has the usage and no choices.

    Closing the generator aborts the requests that still run. Raises the errors of `ternvl.server.answering.answer`.
    """
    answer_id = new_id("chatcmpl")
    running = await answer(serving, request, lambda defaults: [request.to_ask(defaults)], answer_id)
    chunks = ChatAnswer(
        answer_id, running.model, serving.fingerprint, running.prompts[0], serving.llm.tokenizer, running.has_logprobs
    )
    async with aclosing(running.deltas) as deltas:
        async for delta in deltas:
            if delta.prompt_logprobs:
                await asyncio.to_thread(chunks.take_prompt, delta.prompt_logprobs, request.prompt_logprobs or 0)
            for chunk in chunks.to_chunks(delta):
                yield chunk | {"usage": chunks.usage} if request.repeats_usage else chunk
    yield chunks.chunk() | {"usage": chunks.usage} | chunks.fields


async def fold(chunks: AsyncIterable[ChatChunk]) -> dict[str, Any]:
    """Return the whole answer, a `chat.completion`, given the chunks of its stream."""
    answer: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    async for chunk in chunks:
        answer |= chunk
        for piece in chunk["choices"]:
            _add_piece(choices.setdefault(piece["index"], _empty_choice(piece["index"])), piece)
    return answer | {"object": "chat.completion", "choices": [choices[index] for index in sorted(choices)]}


def _empty_choice(index: int) -> dict[str, Any]:
    message = {"role": "assistant", "content": None}
    return {"index": index, "message": message, "logprobs": None, "finish_reason": None}


def _add_piece(choice: dict[str, Any], piece: dict[str, Any]) -> None:
    message, delta = choice["message"], piece["delta"]
    if delta.get("content") is not None:
        message["content"] = (message["content"] or "") + delta["content"]
    if "reasoning_content" in delta:
        message["reasoning_content"] = message.get("reasoning_content", "") + delta["reasoning_content"]
    for call in delta.get("tool_calls", ()):
        _add_call(message.setdefault("tool_calls", []), call)
    if piece["logprobs"] is not None:
        choice["logprobs"] = choice["logprobs"] or {"content": [], "refusal": None}
        choice["logprobs"]["content"] += piece["logprobs"]["content"]
    choice["finish_reason"] = piece["finish_reason"]
    if choice["finish_reason"] and "tool_calls" in message:
        message["content"] = message["content"] or None


def _add_call(calls: list[dict[str, Any]], piece: dict[str, Any]) -> None:
    function = piece["function"]
    if piece["index"] == len(calls):
        calls.append({"id": piece["id"], "type": piece["type"], "function": dict(function)})
    else:
        calls[piece["index"]]["function"]["arguments"] += function["arguments"]


async def chat_completions(request: Request) -> Response:
    """Answer `POST /v1/chat/completions`."""
    wanted, headers = await read(request, ChatRequest, "chat", generates=True)
    form = openai_form(include_usage=wanted.includes_usage) if wanted.stream else None
    return await send(request, complete(serving_of(request), wanted), fold=fold, form=form, headers=headers)
