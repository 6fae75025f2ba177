"""Calls that break rules which no grammar enforces: headers of answers, log lines, and what `LLM` returns."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from ternvl.answer.checks import BrokenRule
from ternvl.llm import LLM, Completion
from ternvl.params import SamplingParams
from tests.server.calling import HI
from tests.server.fakes import serving, tiny_llm

ONES = {"type": "array", "items": {"const": 1}, "minItems": 2, "maxItems": 2, "uniqueItems": True}
"""Every value breaks it."""
SCHEMA = {
    "type": "object",
    "properties": {"ones": ONES, "file": {"type": "string", "format": "binary", "maxLength": 2}},
    "required": ["ones", "file"],
}
FUNCTION: dict[str, Any] = {"name": "f", "parameters": SCHEMA}
REQUIRED = {"tool_choice": "required", "parallel_tool_calls": False}
PROTOCOLS: dict[str, tuple[dict[str, Any], str]] = {
    "/v1/chat/completions": (
        {**HI, **REQUIRED, "tools": [{"type": "function", "function": FUNCTION}], "max_tokens": 200},
        "tools[0].function.parameters",
    ),
    "/v1/responses": (
        {"input": "hi", **REQUIRED, "tools": [{"type": "function", **FUNCTION}], "max_output_tokens": 200},
        "tools[0].parameters",
    ),
    "/v1/messages": (
        {
            **HI,
            "tools": [{"name": "f", "input_schema": SCHEMA}],
            "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
            "max_tokens": 200,
        },
        "tools[0].input_schema",
    ),
}
BROKEN, UNCHECKED = "x-ternvl-broken-schema", "x-ternvl-unchecked-schema"


@pytest.fixture(scope="module")
def llm() -> LLM:
    return tiny_llm(max_model_len=2048)


@pytest.fixture(scope="module")
def client(llm: LLM) -> Iterator[httpx.Client]:
    with serving(llm) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def call_id(answer: dict[str, Any]) -> str:
    if "choices" in answer:
        return str(answer["choices"][0]["message"]["tool_calls"][0]["id"])
    items = answer.get("output") or answer["content"]
    return str(items[0].get("call_id") or items[0]["id"])


@pytest.mark.parametrize("path", PROTOCOLS)
def test_an_answer_says_which_call_breaks_which_rule(
    client: httpx.Client, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    body, schema = PROTOCOLS[path]
    response = client.post(path, json=body, headers={"x-request-id": "mine"})
    assert response.status_code == 200, response.text
    broken = f"{call_id(response.json())}:{schema}.properties.ones.uniqueItems"
    assert response.headers[BROKEN] == broken
    assert response.headers[UNCHECKED] == f"{schema}.properties.file.format"
    (line,) = [record.getMessage() for record in caplog.records if "break rules" in record.getMessage()]
    assert f"'{broken}'" in line
    assert f"'{schema}.properties.file.format'" in line
    assert line.endswith("(request mine)")


@pytest.mark.parametrize("path", PROTOCOLS)
def test_of_a_stream_the_log_says_it(client: httpx.Client, path: str, caplog: pytest.LogCaptureFixture) -> None:
    body, schema = PROTOCOLS[path]
    response = client.post(path, json={**body, "stream": True})
    assert response.status_code == 200
    assert BROKEN not in response.headers
    (line,) = [record.getMessage() for record in caplog.records if "break rules" in record.getMessage()]
    (call,) = {name for name in line.split("'") if name.startswith("call_")}
    assert call.partition(":")[0] in response.text
    assert call.endswith(f":{schema}.properties.ones.uniqueItems")


def test_every_choice_is_named(client: httpx.Client) -> None:
    body, _ = PROTOCOLS["/v1/chat/completions"]
    response = client.post("/v1/chat/completions", json={**body, "n": 3})
    calls = {choice["message"]["tool_calls"][0]["id"] for choice in response.json()["choices"]}
    assert {each.partition(":")[0] for each in response.headers[BROKEN].split(",")} == calls
    assert len(calls) == 3


@pytest.mark.parametrize(
    "change",
    [{"max_tokens": 20}, {"tool_choice": "none", "max_tokens": 20}, {"stop": '"ones"'}],
    ids=["a call that is cut", "no call", "a call that a stop string cuts"],
)
def test_without_a_complete_call_nothing_is_broken(client: httpx.Client, change: dict[str, Any]) -> None:
    body, _ = PROTOCOLS["/v1/chat/completions"]
    response = client.post("/v1/chat/completions", json=body | change)
    assert response.status_code == 200
    assert not {BROKEN, UNCHECKED} & response.headers.keys()


def test_a_schema_that_cannot_be_checked_does_not_fail_the_request(client: httpx.Client) -> None:
    hostile = {"type": "string", "pattern": r"^(?!x)(a|aa)+$", "not": {"$ref": "#/$defs/missing", "type": 3}}
    schema = {"type": "object", "properties": {"v": hostile}, "required": ["v"]}
    body, path = PROTOCOLS["/v1/chat/completions"]
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    response = client.post("/v1/chat/completions", json={**body, "tools": tools, "temperature": 0})
    assert response.status_code == 200, response.text
    assert set(response.headers[UNCHECKED].split(",")) <= {f"{path}.properties.v.pattern", f"{path}.properties.v.not"}


def test_offline_an_answer_lists_them(llm: LLM, caplog: pytest.LogCaptureFixture) -> None:
    tools = [{"type": "function", "function": FUNCTION}]
    options: dict[str, Any] = {"tools": tools, **REQUIRED}
    params = SamplingParams(max_tokens=200, seed=1)

    def check(answer: Completion) -> None:
        (call,) = answer.tool_calls
        assert json.loads(call.arguments)["ones"] == [1, 1]
        schema = "tools[0].function.parameters.properties"
        assert answer.broken_rules == (BrokenRule(call.id, f"{schema}.ones.uniqueItems"),)
        assert answer.unchecked_rules == (f"{schema}.file.format",)
        assert caplog.records[-1].getMessage().startswith(f"Calls break rules of their schemas: '{call.id}:")

    async def streamed() -> Completion:
        stream = await llm.astream(HI["messages"], params, **options)
        async for _ in stream:
            pass
        return stream.output.outputs[0]

    check(llm.chat(HI["messages"], params, **options)[0].outputs[0])
    check(asyncio.run(streamed()))
    with llm.stream(HI["messages"], params, **options) as stream:
        deltas = list(stream)
    check(stream.output.outputs[0])
    assert [bool(delta.broken_rules) for delta in deltas] == [False] * (len(deltas) - 1) + [True]
