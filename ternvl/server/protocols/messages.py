"""`POST /v1/messages`: turns deltas into the events of Anthropic's Messages, and events into a whole message."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ternvl.answer.delta import Delta
from ternvl.output.tool_calls import ToolCallDelta
from ternvl.server.answering import InFlightAnswer, answer, new_id, prompt_of, split_calls
from ternvl.server.endpoint import read, send, serving_of
from ternvl.server.errors import HTTPError
from ternvl.server.guard.limits import MAX_DEPTH, nests_deeper
from ternvl.server.protocols.messages_schema import CountTokensRequest, MessagesRequest
from ternvl.server.serving import Serving
from ternvl.server.sse import Form, named_event

MessageEvent = dict[str, Any]

_INPUT_DEPTH = 8
"""Levels of a request's JSON around the input of an earlier call, with room to spare."""

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


@dataclass
class MessageAnswer:
    """A message that is being generated: its number of tokens and blocks, and the type of the open block."""

    id: str
    running: InFlightAnswer
    num_tokens: int = 0
    num_blocks: int = 0
    open_type: str | None = None

    def begin(self, delta: Delta) -> MessageEvent:
        """Return the first event of the stream, given the first delta."""
        prompt = self.running.prompts[0]
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
            "model": self.running.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }
        return {"type": "message_start", "message": message}

    def add(self, delta: Delta) -> Iterator[MessageEvent]:
        """Yield the events of a delta. Those of the last delta end the stream."""
        self.num_tokens += delta.num_tokens
        continued, begun = split_calls(delta)
        for call in continued:
            yield from self._add_call(call)
        if delta.text:
            if self.open_type != "text":
                yield from self._open({"type": "text", "text": ""})
            yield self._delta({"type": "text_delta", "text": delta.text})
        for call in begun:
            yield from self._add_call(call)
        if delta.finish_reason:
            yield from self._close()
            yield self._end(delta)
            yield {"type": "message_stop"}

    def _end(self, delta: Delta) -> MessageEvent:
        by_string = delta.stop_string is not None and delta.finish_reason == "stop"
        reason = "stop_sequence" if by_string else _STOP_REASONS[delta.finish_reason or ""]
        fields = {"stop_reason": reason, "stop_sequence": delta.stop_string if by_string else None}
        return {"type": "message_delta", "delta": fields, "usage": {"output_tokens": self.num_tokens}}

    def _add_call(self, call: ToolCallDelta) -> Iterator[MessageEvent]:
        if call.name is not None:
            yield from self._open({"type": "tool_use", "id": call.id, "name": call.name, "input": {}})
        if call.arguments:
            yield self._delta({"type": "input_json_delta", "partial_json": call.arguments})

    def _delta(self, delta: dict[str, Any]) -> MessageEvent:
        return {"type": "content_block_delta", "index": self.num_blocks - 1, "delta": delta}

    def _open(self, block: dict[str, Any]) -> Iterator[MessageEvent]:
        yield from self._close()
        self.open_type = block["type"]
        self.num_blocks += 1
        yield {"type": "content_block_start", "index": self.num_blocks - 1, "content_block": block}

    def _close(self) -> Iterator[MessageEvent]:
        if self.open_type is not None:
            self.open_type = None
            yield {"type": "content_block_stop", "index": self.num_blocks - 1}


async def respond(serving: Serving, request: MessagesRequest) -> AsyncGenerator[MessageEvent]:
    """Yield the events of a message. Closing the generator aborts the request."""
    answer_id = new_id("msg", "_")
    running = await answer(serving, request, lambda defaults: [request.to_ask(request.to_params(defaults))], answer_id)
    message, has_begun = MessageAnswer(answer_id, running), False
    async with aclosing(running.deltas) as deltas:
        async for delta in deltas:
            if not has_begun:
                has_begun = True
                yield message.begin(delta)
            for event in message.add(delta):
                yield event


async def fold(events: AsyncIterable[MessageEvent]) -> dict[str, Any]:
    """Return the whole message, given the events of its stream."""
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
        block["input"] = _to_input(text)


def _to_input(arguments: str) -> dict[str, Any]:
    """Return the arguments of a call as an object. Those of a call that was cut are parsed up to the cut.

    Arguments that a request could not send back (a number that JSON readers refuse, too many levels) are the text
    `arguments_json`.
    """
    try:
        value: dict[str, Any] = from_json(arguments or "{}", allow_partial=True)
        if nests_deeper(value, MAX_DEPTH - _INPUT_DEPTH):
            raise ValueError("too many levels")
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        return {"arguments_json": arguments}
    return value


def _failure(error: HTTPError) -> bytes:
    return named_event(error.anthropic_body)


FORM: Form[MessageEvent] = Form(named_event, _failure)


async def messages(request: Request) -> Response:
    """Answer `POST /v1/messages`."""
    wanted, headers = await read(request, MessagesRequest, "messages", generates=True)
    events = respond(serving_of(request), wanted)
    return await send(request, events, fold=fold, form=FORM if wanted.stream else None, headers=headers)


async def count_tokens(request: Request) -> Response:
    """Answer `POST /v1/messages/count_tokens`: the number of tokens of a conversation's prompt."""
    wanted, headers = await read(request, CountTokensRequest, "messages")
    prompt = await prompt_of(serving_of(request), wanted)
    return JSONResponse({"input_tokens": prompt.num_tokens}, headers=headers)
