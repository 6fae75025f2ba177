"""The same Ask through `LLM.chat`, `LLM.stream`, `LLM.astream` and HTTP, streamed or not, has the same answer."""

from __future__ import annotations

import asyncio
import base64
import copy
import io
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from PIL import Image

from ternvl.answer.delta import Delta
from ternvl.fused.exact import prepare
from ternvl.kernels.loader import available
from ternvl.llm import LLM, RequestOutput
from ternvl.params import Grammar, SamplingParams
from ternvl.server.protocols import logprobs
from tests.fakes import tiny_tokenizer
from tests.server.fakes import scripted_llm, serving, tiny_model

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "strict": True,
            "parameters": {"type": "object", "properties": {"at": {"type": "integer"}}, "required": ["at"]},
        },
    }
    for name in ("look", "take")
]
SCHEMA = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}
CALL = '<tool_call>\n{"name": "look", "arguments": {"at": 12}}\n</tool_call>'
SCRIPTS = [
    "<think>Hm, é\n</think>\n\nSo: 上海 STOP here" + CALL + "\n" + CALL,
    "<think>never ends",
    "So STOP",
    CALL + "\n" + CALL,
    'Is <tool_call>\n{"name": "other", "arguments": {}}\n</tool_call>?',
]


def picture(colour: str, width: int) -> str:
    data = io.BytesIO()
    Image.new("RGB", (width, 40), colour).save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


@dataclass
class Choice:
    """One choice, whichever door it came through."""

    text: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    finish_reason: str | None = None
    logprobs: list[dict[str, Any]] = field(default_factory=list)


def params_of(body: dict[str, Any]) -> SamplingParams:
    """What `LLM` takes in place of a body's sampling fields."""
    names = ("temperature", "top_p", "seed", "n", "max_tokens", "stop", "min_tokens", "presence_penalty", "top_k")
    given = {name: body[name] for name in names if name in body}
    if body.get("logprobs"):
        given["logprobs"] = body["top_logprobs"]
    if "response_format" in body:
        given["grammar"] = Grammar.of("json_schema", SCHEMA)
    return SamplingParams(**given)


def options_of(body: dict[str, Any]) -> dict[str, Any]:
    return {name: body[name] for name in ("tools", "tool_choice", "parallel_tool_calls") if name in body}


def from_output(output: RequestOutput) -> list[Choice]:
    return [
        Choice(each.text, each.reasoning, [(call.name, call.arguments) for call in each.tool_calls], each.finish_reason)
        for each in output.outputs
    ]


def from_deltas(llm: LLM, deltas: Iterable[Delta], n: int) -> list[Choice]:
    choices = [Choice() for _ in range(n)]
    for delta in deltas:
        choice = choices[delta.index]
        choice.text += delta.text
        choice.reasoning += delta.reasoning
        choice.finish_reason = delta.finish_reason
        choice.logprobs += [logprobs.entry(llm.tokenizer, *each) for each in delta.logprobs]
        for call in delta.tool_calls:
            _add_call(choice, call.name, call.arguments)
    return choices


def _add_call(choice: Choice, name: str | None, arguments: str) -> None:
    if name is not None:
        choice.calls.append((name, arguments))
    else:
        choice.calls[-1] = (choice.calls[-1][0], choice.calls[-1][1] + arguments)


def from_answer(answer: dict[str, Any]) -> list[Choice]:
    choices = []
    for each in answer["choices"]:
        message = each["message"]
        calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", ())]
        listed = each["logprobs"]["content"] if each["logprobs"] else []
        reasoning = message.get("reasoning_content", "")
        choices.append(Choice(message["content"] or "", reasoning, calls, each["finish_reason"], listed))
    return choices


def from_events(events: str, n: int) -> list[Choice]:
    choices = [Choice() for _ in range(n)]
    assert events.endswith("data: [DONE]\n\n")
    for event in events.split("\n\n")[:-2]:
        for piece in json.loads(event.removeprefix("data: "))["choices"]:
            choice, delta = choices[piece["index"]], piece["delta"]
            choice.text += delta.get("content") or ""
            choice.reasoning += delta.get("reasoning_content", "")
            choice.finish_reason = piece["finish_reason"]
            choice.logprobs += piece["logprobs"]["content"] if piece["logprobs"] else []
            for call in delta.get("tool_calls", ()):
                _add_call(choice, call["function"].get("name"), call["function"]["arguments"])
    return choices


async def collected(llm: LLM, body: dict[str, Any]) -> list[Delta]:
    async with await llm.astream(body["messages"], params_of(body), **options_of(body)) as stream:
        return [delta async for delta in stream]


def check(llm: LLM, http: httpx.Client, body: dict[str, Any]) -> list[Choice]:
    """Every door gives the same; returns it."""
    n, params, options = body.get("n", 1), params_of(body), options_of(body)
    whole = llm.chat(body["messages"], params, **options)[0]
    with llm.stream(body["messages"], params, **options) as stream:
        deltas = list(stream)
        assert from_output(stream.output) == from_output(whole), body
        assert [each.logprobs for each in stream.output.outputs] == [each.logprobs for each in whole.outputs], body
        assert [each.token_ids for each in stream.output.outputs] == [each.token_ids for each in whole.outputs], body
    choices = from_deltas(llm, deltas, n)
    assert [Choice(c.text, c.reasoning, c.calls, c.finish_reason) for c in choices] == from_output(whole), body
    assert from_deltas(llm, asyncio.run(collected(llm, body)), n) == choices, body
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, (body, answer.text)
    assert from_answer(answer.json()) == choices, body
    events = http.post("/v1/chat/completions", json={**body, "stream": True})
    assert from_events(events.text, n) == choices, body
    return choices


def bodies(seed: int, count: int) -> Iterator[dict[str, Any]]:
    """Random requests."""
    rng = random.Random(seed)
    for _ in range(count):
        text = "".join(rng.choice("ab é上<>|") for _ in range(rng.randint(0, 12)))
        content: Any = text
        if rng.random() < 0.3:
            url = picture(rng.choice(("red", "blue")), rng.randint(8, 90))
            content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": content}],
            "seed": rng.randrange(2**63),
            "n": rng.choice((1, 1, 2, 3)),
            "max_tokens": rng.randint(1, 24),
            "temperature": rng.choice((0, 0.7, 1.8)),
        }
        optional = {
            "top_p": 0.9,
            "top_k": 20,
            "min_tokens": 1,
            "presence_penalty": 0.5,
            "stop": rng.sample(["a", "b", " ", "é", "STOP"], 2),
            "logprobs": True,
            "response_format": {"type": "json_schema", "json_schema": {"name": "yes", "schema": SCHEMA}},
            "tools": TOOLS,
        }
        body |= {name: value for name, value in optional.items() if rng.random() < 0.3}
        if body.get("logprobs"):
            body["top_logprobs"] = rng.choice((0, 2))
        if "tools" in body:
            body["max_tokens"] += 60  # a call begins with about 50 tokens of this tokenizer
            named = {"type": "function", "function": {"name": "take"}}
            body["tool_choice"] = rng.choice(("auto", "auto", "required", "none", named))
            body["parallel_tool_calls"] = rng.random() < 0.5
        yield body


@pytest.mark.skipif(not available(), reason="plain torch is exact to the last bits only")
def test_random_asks_have_one_answer_through_every_door() -> None:
    model, found = copy.deepcopy(tiny_model()), list[Choice]()
    prepare(model)
    llm = LLM.from_parts(model, tiny_tokenizer(), name="tiny", max_model_len=1024)
    with serving(llm) as url, httpx.Client(base_url=url, timeout=60) as http:
        for body in bodies(seed=7, count=16):
            found += check(llm, http, body)
    assert {choice.finish_reason for choice in found} >= {"stop", "length"}
    assert any(choice.calls for choice in found)
    assert any(choice.logprobs for choice in found)


@pytest.mark.parametrize("text", SCRIPTS)
@pytest.mark.parametrize(
    "options", [{}, {"stop": ["STOP"]}, {"tools": TOOLS}, {"tools": TOOLS, "stop": ["STOP", "12"]}]
)
def test_reasoning_calls_and_stop_strings_are_the_same_through_every_door(text: str, options: dict[str, Any]) -> None:
    llm = scripted_llm(text)
    body = {"messages": [{"role": "user", "content": "Go"}], "n": 2, **options}
    with serving(llm) as url, httpx.Client(base_url=url, timeout=60) as http:
        choices = check(llm, http, body)
    assert choices[0] == choices[1]
    assert ("<think>" in text) == bool(choices[0].reasoning)
    if "tools" in options and text == SCRIPTS[3] and "stop" not in options:
        assert choices[0].calls == [("look", '{"at": 12}')] * 2
        assert (choices[0].text, choices[0].finish_reason) == ("", "tool_calls")
