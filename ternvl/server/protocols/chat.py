"""Chat Completions between the schema and the engine: a body to requests, deltas to chunks, chunks to an
answer. The answer that is not streamed folds the chunks of the one that is."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ternvl.answer.ask import new_id, to_params, to_requests
from ternvl.answer.choice import Delta, generate
from ternvl.lora.bank import Adapter
from ternvl.output.tool_calls import ToolCallDelta
from ternvl.params import SamplingParams
from ternvl.prompt.messages import Message, parse_messages
from ternvl.prompt.tokenizer import Tokenizer
from ternvl.sampling.grammar import CompiledGrammar
from ternvl.sampling.tools import tool_names
from ternvl.server.grammars import to_grammar
from ternvl.server.protocols import logprobs
from ternvl.server.protocols.chat_schema import ChatRequest
from ternvl.types import Prompt

if TYPE_CHECKING:
    from ternvl.llm import LLM
    from ternvl.server.serving import Serving

Chunk = dict[str, Any]


def to_messages(request: ChatRequest) -> list[Message]:
    """The conversation without JSON."""
    return parse_messages([message.model_dump(exclude_unset=True) for message in request.messages])


def to_tools(request: ChatRequest) -> list[dict[str, Any]]:
    """The tools that the prompt shows: none with `tool_choice` "none". `strict` is not the model's to read."""
    if request.tool_choice == "none":
        return []
    return [tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in request.tools or []]


@dataclass
class Completion:
    """One answer under way: what its chunks have in common, and what was counted so far."""

    id: str
    model: str
    fingerprint: str
    prompt: Prompt
    tokenizer: Tokenizer
    with_logprobs: bool
    created: int = field(default_factory=lambda: int(time.time()))
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
        """Chunks of one delta: at most one with reasoning, one with text, one a piece of a call, one with the
        finish reason."""
        self.num_tokens += delta.num_tokens
        self.num_cached_tokens = max(self.num_cached_tokens, delta.num_cached_tokens)
        listed = [logprobs.entry(self.tokenizer, *item) for item in delta.logprobs]
        added: list[dict[str, Any]] = [{"tool_calls": [_tool_call(call)]} for call in delta.tool_calls]
        if delta.text or (listed and not added and not delta.reasoning):
            added.insert(0, {"content": delta.text} if delta.text else {})
        if delta.reasoning:
            added.insert(0, {"reasoning_content": delta.reasoning})
        for content in added:
            yield self.chunk(self._choice(delta.index, self._begun_with(delta.index, content), listed, None))
            listed = []
        if delta.finish_reason:
            last = self._begun_with(delta.index, {})
            yield self.chunk(self._choice(delta.index, last, [], delta.finish_reason))

    def _begun_with(self, index: int, content: dict[str, Any]) -> dict[str, Any]:
        """What is added to the message of choice `index`: with the role, if it is the first."""
        if index in self._begun:
            return content
        self._begun.add(index)
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


def build(llm: LLM, request: ChatRequest) -> Prompt:
    """The prompt of a request; blocks while images are fetched. Raises what `PromptBuilder.build` raises."""
    tiles = request.mm_processor_kwargs.max_dynamic_patch if request.mm_processor_kwargs else None
    return llm.builder.build(
        to_messages(request),
        tools=to_tools(request),
        add_generation_prompt=request.add_generation_prompt is not False,
        continue_final_message=bool(request.continue_final_message),
        max_dynamic_patch=tiles,
    )


@dataclass(frozen=True)
class Answering:
    """A conversation that is being answered: what every protocol makes its own answer of."""

    model: str
    """The name of the model that answers."""
    prompt: Prompt
    params: SamplingParams
    deltas: AsyncGenerator[Delta]
    """Closing it aborts what still runs."""
    grammar: CompiledGrammar | None
    """While it is held, the engine need not compile it."""


async def answer(serving: Serving, request: ChatRequest, answer_id: str, *, split_reasoning: bool = False) -> Answering:
    """Begins an answer; `answer_id` is what its requests are called by. Reasoning is text unless it is split off.

    Raises the errors of `ternvl.errors`, and HTTPError for a model that is not served. So does drawing deltas.
    """
    llm = serving.llm
    choice = serving.choose(request.model, request.lora)
    meter = serving.metrics.meter()
    params = replace(to_params(request, llm), grammar=to_grammar(request))
    serving.check_cost(request.num_answers, params.max_tokens)
    deadline = serving.deadline()
    grammar = await serving.compile(params.grammar, deadline=deadline)
    building = partial(build, llm, request)
    prompt = await serving.build_prompt(building, has_images=request.has_images, deadline=deadline)
    names = tool_names(to_tools(request))
    is_free = params.grammar is None or params.grammar.kind == "tools"

    def begin(adapter: Adapter | None) -> AsyncGenerator[Delta]:
        return generate(
            serving.service,
            to_requests(answer_id, prompt, params, request, adapter),
            llm.tokenizer,
            tool_names=names,
            split_reasoning=split_reasoning and is_free,
            deadline=deadline,
        )

    deltas = serving.adapters.answer(choice.adapter, begin)
    return Answering(choice.name, prompt, params, meter.watch(deltas, prompt.num_tokens), grammar)


async def complete(serving: Serving, request: ChatRequest) -> AsyncGenerator[Chunk]:
    """Chunks of the answer; the last one has no choices and the usage. Closing it aborts what still runs."""
    answer_id = new_id("chatcmpl")
    begun = await answer(serving, request, answer_id, split_reasoning=True)
    with_logprobs = begun.params.logprobs is not None
    tokenizer = serving.llm.tokenizer
    completion = Completion(answer_id, begun.model, serving.fingerprint, begun.prompt, tokenizer, with_logprobs)
    async with aclosing(begun.deltas) as deltas:
        async for delta in deltas:
            for chunk in completion.to_chunks(delta):
                yield chunk
    yield completion.chunk() | {"usage": completion.usage}
