"""`POST /v1/messages`: deltas of a chat answer as the events of Anthropic's Messages."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic_core import from_json
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ternvl.answer.ask import new_id
from ternvl.answer.choice import Delta
from ternvl.output.tool_calls import ToolCallDelta
from ternvl.server.endpoint import read, send, serving_of
from ternvl.server.errors import HTTPError
from ternvl.server.foreign import Foreign
from ternvl.server.protocols.chat import Answering, answer, build
from ternvl.server.protocols.messages_schema import MESSAGE_VALUES, Conversation, MessagesRequest
from ternvl.server.serving import Serving
from ternvl.server.sse import Form, named_event

Event = dict[str, Any]

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


@dataclass
class _Answer:
    """One message under way: how many blocks it has, and of which type the open one is."""

    id: str
    begun: Answering
    num_tokens: int = 0
    num_blocks: int = 0
    open_type: str | None = None

    def begin(self, delta: Delta) -> Event:
        """The event before the first block."""
        prompt = self.begun.prompt
        usage = {
            "input_tokens": prompt.num_tokens - delta.num_cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": delta.num_cached_tokens,
            "output_tokens": 0,
        }
        message: dict[str, Any] = {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.begun.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }
        return {"type": "message_start", "message": message}

    def add(self, delta: Delta) -> Iterator[Event]:
        """The events of a delta; the last delta has the last event."""
        self.num_tokens += delta.num_tokens
        if delta.text:
            if self.open_type != "text":
                yield from self._open({"type": "text", "text": ""})
            yield self._delta({"type": "text_delta", "text": delta.text})
        for call in delta.tool_calls:
            yield from self._add_call(call)
        if delta.finish_reason:
            yield from self._close()
            yield self._end(delta)
            yield {"type": "message_stop"}

    def _end(self, delta: Delta) -> Event:
        by_string = delta.stop_string is not None and delta.finish_reason == "stop"
        reason = "stop_sequence" if by_string else _STOP_REASONS[delta.finish_reason or ""]
        told = {"stop_reason": reason, "stop_sequence": delta.stop_string if by_string else None}
        return {"type": "message_delta", "delta": told, "usage": {"output_tokens": self.num_tokens}}

    def _add_call(self, call: ToolCallDelta) -> Iterator[Event]:
        if call.name is not None:
            yield from self._open({"type": "tool_use", "id": call.id, "name": call.name, "input": {}})
        if call.arguments:
            yield self._delta({"type": "input_json_delta", "partial_json": call.arguments})

    def _delta(self, delta: dict[str, Any]) -> Event:
        return {"type": "content_block_delta", "index": self.num_blocks - 1, "delta": delta}

    def _open(self, block: dict[str, Any]) -> Iterator[Event]:
        yield from self._close()
        self.open_type = block["type"]
        self.num_blocks += 1
        yield {"type": "content_block_start", "index": self.num_blocks - 1, "content_block": block}

    def _close(self) -> Iterator[Event]:
        if self.open_type is not None:
            self.open_type = None
            yield {"type": "content_block_stop", "index": self.num_blocks - 1}


async def respond(serving: Serving, foreign: Foreign) -> AsyncGenerator[Event]:
    """The events of a message. Closing it aborts what still runs."""
    answer_id = new_id("msg", "_")
    begun = await answer(serving, foreign.parse(), answer_id)
    message, has_begun = _Answer(answer_id, begun), False
    async with aclosing(begun.deltas) as deltas:
        async for delta in deltas:
            if not has_begun:
                has_begun = True
                yield message.begin(delta)
            for event in message.add(delta):
                yield event


async def fold(events: AsyncIterable[Event]) -> dict[str, Any]:
    """The message that is not streamed: what the events of a stream add up to."""
    message: dict[str, Any] = {}
    pieces: dict[int, str] = {}
    async for event in events:
        match event["type"]:
            case "message_start":
                message = event["message"]
            case "content_block_start":
                message["content"].append(event["content_block"])
                pieces[event["index"]] = ""
            case "content_block_delta":
                delta = event["delta"]
                pieces[event["index"]] += delta["text"] if delta["type"] == "text_delta" else delta["partial_json"]
            case "content_block_stop":
                _fill(message["content"][event["index"]], pieces[event["index"]])
            case "message_delta":
                message |= event["delta"] | {"usage": message["usage"] | event["usage"]}
    return message


def _fill(block: dict[str, Any], text: str) -> None:
    if block["type"] == "text":
        block["text"] = text
    else:
        # What there is of a call that was cut, as Anthropic's clients read it from a stream.
        block["input"] = from_json(text or "{}", allow_partial=True)


def _failure(error: HTTPError) -> bytes:
    return named_event(error.anthropic_body)


FORM: Form[Event] = Form(named_event, _failure)


async def messages(request: Request) -> Response:
    """`POST /v1/messages`."""
    wanted, headers = await read(request, MessagesRequest, MESSAGE_VALUES)
    foreign = wanted.to_chat()
    events = foreign.worded(respond(serving_of(request), foreign))
    return await send(request, events, fold=fold, form=FORM if wanted.stream else None, headers=headers)


async def count_tokens(request: Request) -> Response:
    """`POST /v1/messages/count_tokens`: tokens of the prompt that the same conversation would be."""
    serving = serving_of(request)
    wanted, headers = await read(request, Conversation, MESSAGE_VALUES)
    foreign = wanted.to_chat()
    with foreign.in_their_words():
        chat = foreign.parse()
        serving.resolve(chat.model)
        building = partial(build, serving.llm, chat)
        prompt = await serving.build_prompt(building, has_images=chat.has_images, deadline=serving.deadline())
    return JSONResponse({"input_tokens": prompt.num_tokens}, headers=headers)
