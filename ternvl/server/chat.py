"""`POST /v1/chat/completions` between the schema and the engine: a body to requests, deltas to chunks, chunks to an
answer. The answer that is not streamed folds the chunks of the one that is."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ternvl.errors import RequestError
from ternvl.output.tool_calls import ToolCallDelta
from ternvl.prompt.messages import Message, parse_messages
from ternvl.prompt.tokenizer import Tokenizer
from ternvl.server import logprobs
from ternvl.server.generation import Delta, generate
from ternvl.server.grammars import to_grammar
from ternvl.server.schemas import ChatRequest
from ternvl.types import Prompt, Request, SamplingParams

if TYPE_CHECKING:
    from ternvl.llm import LLM
    from ternvl.server.serving import Serving

Chunk = dict[str, Any]

_DIRECT = (
    "temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "min_tokens",
    "ignore_eos",
)  # fmt: skip
"""Fields that `SamplingParams` has under the same name and with the same meaning."""


def to_messages(request: ChatRequest) -> list[Message]:
    """The conversation without JSON."""
    return parse_messages([message.model_dump(exclude_unset=True) for message in request.messages])


def to_tools(request: ChatRequest) -> list[dict[str, Any]]:
    """The tools that the prompt shows: none with `tool_choice` "none". `strict` is not the model's to read."""
    if request.tool_choice == "none":
        return []
    return [tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in request.tools or []]


def to_params(request: ChatRequest, defaults: SamplingParams, vocab_size: int) -> SamplingParams:
    """Sampling parameters: what the request says, else the checkpoint's `defaults`.

    Raises RequestError for a stop token that the vocabulary lacks, and for forms of the answer that do not agree.
    """
    for index, token_id in enumerate(request.stop_token_ids or []):
        if token_id >= vocab_size:
            raise RequestError(
                f"stop_token_ids[{index}] is {token_id}, but the vocabulary ends at {vocab_size - 1}.",
                param=f"stop_token_ids[{index}]",
            )
    given: dict[str, Any] = {name: getattr(request, name) for name in _DIRECT}
    given["top_k"] = None if request.top_k is None else max(request.top_k, 0)
    given["max_tokens"] = request.answer_limit
    given["stop"] = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    given["stop_token_ids"] = tuple(request.stop_token_ids or ())
    given["grammar"] = to_grammar(request)
    given["logprobs"] = (request.top_logprobs or 0) if request.logprobs else None
    return dataclasses.replace(defaults, **{name: value for name, value in given.items() if value is not None})


def to_requests(completion_id: str, prompt: Prompt, params: SamplingParams, request: ChatRequest) -> list[Request]:
    """One request a choice. Choice i has seed + i; without a seed the engine gives each its own."""
    first = Request(f"{completion_id}-0", prompt, params, cache_salt=request.cache_salt or "")
    seed = request.seed
    seeds = [None if seed is None else (seed + index) % 2**63 for index in range(request.n or 1)]
    return [
        dataclasses.replace(
            first,
            id=f"{completion_id}-{index}",
            params=dataclasses.replace(params, seed=choice_seed),
            sibling_of=first.id if index else None,
        )
        for index, choice_seed in enumerate(seeds)
    ]


@dataclass
class Completion:
    """One answer under way: what its chunks have in common, and what was counted so far."""

    model: str
    fingerprint: str
    prompt: Prompt
    tokenizer: Tokenizer
    with_logprobs: bool
    id: str = dataclasses.field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))
    num_tokens: int = 0
    num_cached_tokens: int = 0

    def __post_init__(self) -> None:
        self._begun: set[int] = set()

    @property
    def usage(self) -> dict[str, Any]:
        """Tokens of the prompt and, so far, of all choices together."""
        details = {"cached_tokens": self.num_cached_tokens, "image_tokens": self.prompt.num_image_tokens}
        return {
            "prompt_tokens": self.prompt.num_tokens,
            "completion_tokens": self.num_tokens,
            "total_tokens": self.prompt.num_tokens + self.num_tokens,
            "prompt_tokens_details": details,
        }

    def chunk(self, *choices: dict[str, Any]) -> Chunk:
        """A `chat.completion.chunk`."""
        return {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": list(choices),
        }

    def to_chunks(self, delta: Delta) -> Iterator[Chunk]:
        """Chunks of one delta: at most one with content and one with the finish reason."""
        self.num_tokens += delta.num_tokens
        self.num_cached_tokens = max(self.num_cached_tokens, delta.num_cached_tokens)
        content = self._content(delta)
        listed = [logprobs.entry(self.tokenizer, *item) for item in delta.logprobs]
        if content or listed:
            yield self.chunk(self._choice(delta.index, content, listed, None))
        if delta.finish_reason:
            yield self.chunk(self._choice(delta.index, {}, [], delta.finish_reason))

    def _content(self, delta: Delta) -> dict[str, Any]:
        """What the delta adds to the message; the first of a choice that adds anything, or ends it, has the role."""
        content: dict[str, Any] = {"content": delta.text} if delta.text else {}
        if delta.tool_calls:
            content["tool_calls"] = [_tool_call(call) for call in delta.tool_calls]
        if delta.index in self._begun or not (content or delta.logprobs or delta.finish_reason):
            return content
        self._begun.add(delta.index)
        return {"role": "assistant", "content": None if delta.tool_calls else "", **content}

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


def _build(llm: LLM, request: ChatRequest, tools: list[dict[str, Any]]) -> Prompt:
    tiles = request.mm_processor_kwargs.max_dynamic_patch if request.mm_processor_kwargs else None
    return llm.builder.build(to_messages(request), tools=tools, max_dynamic_patch=tiles)


async def complete(serving: Serving, request: ChatRequest) -> AsyncGenerator[Chunk]:
    """Chunks of the answer; the last one has no choices and the usage. Closing it aborts what still runs.

    Raises the errors of `ternvl.errors`, and HTTPError for a model that is not served.
    """
    llm = serving.llm
    model = serving.resolve(request.model)
    params = to_params(request, llm.default_params(), llm.config.language.vocab_size)
    tools = to_tools(request)
    serving.service.check_room(request.n or 1)
    deadline = serving.deadline()
    grammar = await serving.compile(params.grammar, deadline=deadline)
    build = partial(_build, llm, request, tools)
    prompt = await serving.build_prompt(build, has_images=request.has_images, deadline=deadline)
    completion = Completion(model, serving.fingerprint, prompt, llm.tokenizer, params.logprobs is not None)
    requests = to_requests(completion.id, prompt, params, request)
    deltas = generate(serving.service, requests, llm.tokenizer, parse_tool_calls=bool(tools), deadline=deadline)
    async with aclosing(deltas):
        async for delta in deltas:
            for chunk in completion.to_chunks(delta):
                yield chunk
    del grammar  # while it is held, the engine need not compile it
    yield completion.chunk() | {"usage": completion.usage}
