"""`POST /v1/responses`: turns deltas into the events of OpenAI's Responses."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ternvl.answer.delta import Delta
from ternvl.output.json_string import StringMember
from ternvl.output.tool_calls import ToolCallDelta
from ternvl.server.answering import InFlightAnswer, answer, new_id, prompt_of, split_calls
from ternvl.server.endpoint import read, send, serving_of
from ternvl.server.errors import HTTPError
from ternvl.server.protocols.responses_schema import InputTokensRequest, ResponseRequest
from ternvl.server.protocols.responses_tools import INPUT, CalledTool
from ternvl.server.serving import Serving
from ternvl.server.sse import Form, named_event

ResponseEvent = dict[str, Any]


_CALLS = {
    "function_call": ("arguments", "function_call_arguments"),
    "custom_tool_call": (INPUT, "custom_tool_call_input"),
}
"""The field of a call that grows, and its events, by the type of the call's item."""


def _item(tool: CalledTool, call: ToolCallDelta) -> dict[str, Any]:
    """Return the item of a call that begins."""
    kind = "custom_tool_call" if tool.is_custom else "function_call"
    named: dict[str, Any] = {"call_id": call.id, "name": tool.tool.name, _CALLS[kind][0]: ""}
    if tool.namespace is not None:
        named["namespace"] = tool.namespace.name
    return {"id": new_id("ctc" if tool.is_custom else "fc", "_"), "type": kind, **named}


@dataclass
class ResponseAnswer:
    """A response that is being generated: its items and counts so far."""

    request: ResponseRequest
    id: str
    running: InFlightAnswer
    created: int = field(default_factory=lambda: int(time.time()))
    output: list[dict[str, Any]] = field(default_factory=list)
    num_tokens: int = 0
    num_cached_tokens: int = 0
    num_events: int = 0
    is_open: bool = False
    """Whether the last item is not complete yet."""
    input: StringMember = field(default_factory=StringMember)
    """The text of the last call of a custom tool."""

    def event(self, kind: str, **fields: Any) -> ResponseEvent:
        """Return the next event of the stream."""
        self.num_events += 1
        return {"type": f"response.{kind}", "sequence_number": self.num_events - 1, **fields}

    def begin(self) -> Iterator[ResponseEvent]:
        """Yield the events before the first item."""
        for kind in ("created", "in_progress"):
            yield self.event(kind, response=self.to_json("in_progress"))

    def add(self, delta: Delta) -> Iterator[ResponseEvent]:
        """Yield the events of a delta. Those of the last delta end the stream."""
        self.num_tokens += delta.num_tokens
        self.num_cached_tokens = max(self.num_cached_tokens, delta.num_cached_tokens)
        continued, begun = split_calls(delta)
        for call in continued:
            yield from self._add_call(call)
        if delta.text:
            yield from self._add_text(delta.text)
        for call in begun:
            yield from self._add_call(call)
        if delta.finish_reason:
            is_whole = delta.finish_reason != "length"
            yield from self._close("completed" if is_whole else "incomplete")
            status = "completed" if is_whole else "incomplete"
            yield self.event(status, response=self.to_json(status))

    def _add_text(self, text: str) -> Iterator[ResponseEvent]:
        if not (self.is_open and self.output[-1]["type"] == "message"):
            yield from self._close("completed")
            item: dict[str, Any] = {"id": new_id("msg", "_"), "type": "message", "role": "assistant", "content": []}
            yield self._open(item)
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            item["content"] = [part]
            yield self.event("content_part.added", **self._position(), content_index=0, part=dict(part))
        self.output[-1]["content"][0]["text"] += text
        yield self.event("output_text.delta", **self._position(), content_index=0, delta=text, logprobs=[])

    def _add_call(self, call: ToolCallDelta) -> Iterator[ResponseEvent]:
        if call.name is not None:
            yield from self._close("completed")
            self.input = StringMember()
            yield self._open(_item(self.request.called_tools[call.name], call))
        item = self.output[-1]
        name, events = _CALLS[item["type"]]
        added = self.input.decode(call.arguments) if name == INPUT else call.arguments
        if added:
            item[name] += added
            yield self.event(f"{events}.delta", **self._position(), delta=added)

    def _position(self) -> dict[str, Any]:
        return {"item_id": self.output[-1]["id"], "output_index": len(self.output) - 1}

    def _open(self, item: dict[str, Any]) -> ResponseEvent:
        item["status"] = "in_progress"
        self.output.append(item)
        self.is_open = True
        return self.event("output_item.added", output_index=len(self.output) - 1, item=dict(item))

    def _close(self, status: str) -> Iterator[ResponseEvent]:
        if not self.is_open:
            return
        self.is_open = False
        item = self.output[-1]
        if item["type"] == "message":
            part = item["content"][0]
            yield self.event("output_text.done", **self._position(), content_index=0, text=part["text"], logprobs=[])
            yield self.event("content_part.done", **self._position(), content_index=0, part=part)
        else:
            name, events = _CALLS[item["type"]]
            called = {} if name == INPUT else {"name": item["name"]}
            yield self.event(f"{events}.done", **self._position(), **called, **{name: item[name]})
        item["status"] = status
        yield self.event("output_item.done", output_index=len(self.output) - 1, item=item)

    def to_json(self, status: str) -> dict[str, Any]:
        """Return the response so far as JSON, with a status."""
        request, cut = self.request, status == "incomplete"
        given = request.model_dump(include={"tools", "text", "tool_choice"}, exclude_unset=True, by_alias=True)
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "model": self.running.model,
            "output": list(self.output),
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": None,
            "store": False,
            "temperature": self.running.params.temperature,
            "text": given.get("text") or {"format": {"type": "text"}},
            "tool_choice": given.get("tool_choice") or "auto",
            "tools": given.get("tools") or [],
            "top_p": self.running.params.top_p,
            "truncation": "disabled",
            "usage": None if status == "in_progress" else self._usage(),
            "user": request.user,
            "metadata": request.metadata or {},
        }

    def _usage(self) -> dict[str, Any]:
        prompt = self.running.prompts[0]
        return {
            "input_tokens": prompt.num_tokens,
            "input_tokens_details": {
                "cached_tokens": self.num_cached_tokens,
                "cache_write_tokens": 0,  # clients require it; the server caches every prompt and bills none
                "image_tokens": prompt.num_image_tokens,
            },
            "output_tokens": self.num_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt.num_tokens + self.num_tokens,
        }


async def respond(serving: Serving, request: ResponseRequest) -> AsyncGenerator[ResponseEvent]:
    """Yield the events of a response; the last has the whole response. Closing the generator aborts the request."""
    answer_id = new_id("resp", "_")
    running = await answer(serving, request, lambda defaults: [request.to_ask(defaults)], answer_id)
    response = ResponseAnswer(request, answer_id, running)
    async with aclosing(running.deltas) as deltas:
        async for delta in deltas:
            if not response.num_events:
                for event in response.begin():
                    yield event
            for event in response.add(delta):
                yield event


async def fold(events: AsyncIterable[ResponseEvent]) -> dict[str, Any]:
    """Return the whole response, which is that of the last event."""
    response: dict[str, Any] = {}
    async for event in events:
        response = event.get("response", response)
    return response


def _form() -> Form[ResponseEvent]:
    num_events = 0

    def shown(event: ResponseEvent) -> bytes:
        nonlocal num_events
        num_events = event["sequence_number"] + 1
        return named_event(event)

    def failure(error: HTTPError) -> bytes:
        fields = {"code": error.code, "message": error.message, "param": error.param}
        return named_event({"type": "error", "sequence_number": num_events, **fields})

    return Form(shown, failure)


async def responses(request: Request) -> Response:
    """Answer `POST /v1/responses`."""
    wanted, headers = await read(request, ResponseRequest, "responses", generates=True)
    events = respond(serving_of(request), wanted)
    return await send(request, events, fold=fold, form=_form() if wanted.stream else None, headers=headers)


async def input_tokens(request: Request) -> Response:
    """Answer `POST /v1/responses/input_tokens`: the number of tokens of a response's prompt."""
    wanted, headers = await read(request, InputTokensRequest, "responses")
    prompt = await prompt_of(serving_of(request), wanted)
    return JSONResponse({"object": "response.input_tokens", "input_tokens": prompt.num_tokens}, headers=headers)
