"""Tool calls as an answer shows them: whole, in a stream, cut, offline; and reasoning before an answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import OpenAI

from ternvl.errors import RequestError
from ternvl.params import SamplingParams
from tests.fakes import tiny_tokenizer
from tests.server.calling import CHAT, HI, ask, events, tool
from tests.server.fakes import scripted_llm, serving, tiny_llm


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with serving(tiny_llm(max_model_len=4096)) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def streamed(client: httpx.Client, **fields: Any) -> list[dict[str, Any]]:
    body = {**HI, "max_tokens": 500, "seed": 1, "stream": True, **fields}
    *chunks, end = events(client.post(CHAT, json=body).raise_for_status())
    assert end == "[DONE]"
    return [json.loads(chunk)["choices"][0] for chunk in chunks]


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "find"}}])
def test_a_call_streams_in_pieces_of_its_arguments(client: httpx.Client, choice: Any) -> None:
    # Under "auto" the opening tag has to be drawn: nothing but it is allowed to be likely.
    tag = tiny_tokenizer().full.token_to_id("<tool_call>")
    bias = {"logit_bias": {str(tag): 100}} if choice == "auto" else {}
    asked = {"tools": [tool("look"), tool("find")], "tool_choice": choice, "parallel_tool_calls": False, **bias}
    pieces = streamed(client, **asked, temperature=0)
    calls = [call for piece in pieces for call in piece["delta"].get("tool_calls", [])]
    assert all(len(piece["delta"].get("tool_calls", [])) <= 1 for piece in pieces)
    assert calls[0].keys() == {"index", "id", "type", "function"}
    assert calls[0]["function"] == {"name": calls[0]["function"]["name"], "arguments": ""}
    assert len(calls) > 5
    assert all(call.keys() == {"index", "function"} and call["function"].keys() == {"arguments"} for call in calls[1:])
    whole = ask(client, **asked, temperature=0)
    function = whole["message"]["tool_calls"][0]["function"]
    assert "".join(call["function"]["arguments"] for call in calls) == function["arguments"]
    assert (calls[0]["function"]["name"], pieces[-1]["finish_reason"]) == (function["name"], whole["finish_reason"])


@pytest.mark.parametrize("max_tokens", [5, 20, 40, 45, 50])
def test_a_call_that_is_cut_loses_nothing(client: httpx.Client, max_tokens: int) -> None:
    asked = {"tools": [tool("look")], "tool_choice": "required", "temperature": 0}
    whole, cut = ask(client, **asked)["message"], ask(client, **asked, max_tokens=max_tokens)
    assert cut["finish_reason"] == "length"
    pieces = streamed(client, **asked, max_tokens=max_tokens)
    text = "".join(piece["delta"].get("content") or "" for piece in pieces)
    calls = [call for piece in pieces for call in piece["delta"].get("tool_calls", [])]
    arguments = "".join(call["function"]["arguments"] for call in calls)
    assert text == (cut["message"]["content"] or "")
    if cut["message"].get("tool_calls"):
        assert arguments == cut["message"]["tool_calls"][0]["function"]["arguments"]
        assert whole["tool_calls"][0]["function"]["arguments"].startswith(arguments.rstrip("\ufffd"))
        assert not text
    else:
        assert text.startswith("<tool_call>")
        assert not calls


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "find"}}, "none"])
def test_offline_chat_calls_as_the_server_does(choice: Any) -> None:
    llm, tools = tiny_llm(max_model_len=4096), [tool("look"), tool("find")]
    params = SamplingParams(temperature=1, max_tokens=300, n=4, seed=11)
    answers = llm.chat(HI["messages"], params, tools=tools, tool_choice=choice)[0].outputs
    asked = {**HI, "temperature": 1, "max_tokens": 300, "n": 4, "seed": 11, "tools": tools, "tool_choice": choice}
    with serving(llm) as url:
        served = httpx.post(url + CHAT, json=asked, timeout=60).raise_for_status().json()["choices"]
    for answer, message in zip(answers, (each["message"] for each in served), strict=True):
        assert answer.text == (message["content"] or "")
        assert [(call.name, call.arguments) for call in answer.tool_calls] == [
            (call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", [])
        ]
    if choice != "auto":
        assert [bool(answer.tool_calls) for answer in answers] == [choice != "none"] * 4


def test_offline_chat_refuses_a_choice_that_there_is_no_tool_for() -> None:
    llm = tiny_llm()
    for choice, param in (("required", "tool_choice"), ("any", "tool_choice"), ({}, "tool_choice")):
        with pytest.raises(RequestError) as refusal:
            llm.chat(HI["messages"], tool_choice=choice)
        assert refusal.value.param == param
    assert not llm.engine.has_work


THOUGHT = '<think>\nHm.\n</think>\n\nSo: <tool_call>\n{"name": "look", "arguments": {"city": "a"}}\n</tool_call>'


def test_reasoning_is_a_field_of_its_own() -> None:
    asked = {"tools": [tool("look")]}
    with serving(scripted_llm(THOUGHT)) as url, httpx.Client(base_url=url, timeout=30) as client:
        whole, pieces = ask(client, **asked), streamed(client, **asked)
        text = client.post("/v1/completions", json={"prompt": "a"}).json()["choices"][0]["text"]
        formed = ask(client, structured_outputs={"regex": "(?s:.*)"})["message"]
    message = whole["message"]
    assert (message["reasoning_content"], message["content"], whole["finish_reason"]) == (
        "\nHm.\n",
        "So: ",
        "tool_calls",
    )
    deltas = [piece["delta"] for piece in pieces]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "\nHm.\n"
    assert "".join(delta.get("content") or "" for delta in deltas) == "So: "
    assert [delta["role"] for delta in deltas if "role" in delta] == ["assistant"]
    assert (text, formed["content"]) == (THOUGHT, THOUGHT)
    assert "reasoning_content" not in formed


CALL = '<tool_call>\n{"name": "look", "arguments": {"at": {"x": [1]}}}\n</tool_call>'
TOOLS: list[Any] = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]


def test_tool_calls_through_the_client() -> None:
    with serving(scripted_llm("Look: " + CALL)) as url, OpenAI(base_url=f"{url}/v1", api_key="-") as client:
        asked: dict[str, Any] = {"model": "tiny", "messages": HI["messages"], "tools": TOOLS}
        whole = client.chat.completions.create(**asked).choices[0]
        with client.chat.completions.stream(**asked) as stream:
            streamed = stream.get_final_completion().choices[0]
        untold = client.chat.completions.create(**asked, tool_choice="none").choices[0]
    for choice in (whole, streamed):
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Look: ")
        assert choice.message.tool_calls
        (call,) = choice.message.tool_calls
        assert call.type == "function"
        assert (call.function.name, json.loads(call.function.arguments)) == ("look", {"at": {"x": [1]}})
        assert call.id
    assert (untold.finish_reason, untold.message.content) == ("stop", "Look: " + CALL)


def test_content_is_null_where_only_calls_are() -> None:
    with serving(scripted_llm(CALL)) as url:
        message = httpx.post(url + CHAT, json={**HI, "tools": TOOLS}).json()["choices"][0]["message"]
        chunks = [json.loads(event) for event in events(httpx.post(url + CHAT, json={**HI, "stream": True}))[:-1]]
    assert message["content"] is None
    assert all("finish_reason" in choice for chunk in chunks for choice in chunk["choices"])


def test_tools_reach_the_prompt_unless_none_is_chosen() -> None:
    llm = scripted_llm("ok")
    with serving(llm) as url:
        counts = [
            httpx.post(url + CHAT, json={**HI, **fields}).json()["usage"]["prompt_tokens"]
            for fields in ({}, {"tools": TOOLS}, {"tools": TOOLS, "tool_choice": "none"}, {"tools": []})
        ]
    assert counts[1] > counts[0] == counts[2] == counts[3]
