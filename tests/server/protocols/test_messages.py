"""`/v1/messages` as the anthropic client sees it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest
from anthropic import Anthropic
from openai import OpenAI

from tests.fakes import tiny_tokenizer
from tests.server.fakes import ScriptedEngine, scripted_llm, serving, tiny_llm
from tests.server.images import png

CALL = '<tool_call>\n{"name": "look", "arguments": {"at": {"x": [1]}}}\n</tool_call>'
TOOLS: list[Any] = [{"name": "look", "description": "Looks.", "input_schema": {"type": "object"}}]
HI: list[Any] = [{"role": "user", "content": "hi"}]
GREEDY = {"temperature": 0}


@pytest.fixture(scope="module")
def claude(url: str) -> Iterator[Anthropic]:
    with Anthropic(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def test_the_answer_is_that_of_chat(claude: Anthropic, client: OpenAI) -> None:
    message = claude.messages.create(model="tiny", messages=HI, system="Be brief.", max_tokens=9, extra_body=GREEDY)
    chat = client.chat.completions.create(
        model="tiny", messages=[{"role": "system", "content": "Be brief."}, *HI], max_tokens=9, temperature=0
    )
    assert "".join(block.text for block in message.content if block.type == "text") == chat.choices[0].message.content
    assert (message.type, message.role, message.model, message.id[:4]) == ("message", "assistant", "tiny", "msg_")
    assert chat.usage is not None
    assert message.usage.output_tokens == chat.usage.completion_tokens
    cached = message.usage.cache_read_input_tokens or 0
    assert message.usage.input_tokens + cached == chat.usage.prompt_tokens
    count = claude.messages.count_tokens(model="tiny", messages=HI, system="Be brief.")
    assert count.input_tokens == chat.usage.prompt_tokens


def test_why_it_ended(claude: Anthropic) -> None:
    forced = {"logit_bias": {str(token): 100 for token in tiny_tokenizer().encode_text("x")}}
    cut = claude.messages.create(model="tiny", messages=HI, max_tokens=3, extra_body=forced)
    assert (cut.stop_reason, cut.stop_sequence) == ("max_tokens", None)
    stopped = claude.messages.create(
        model="tiny", messages=HI, max_tokens=9, stop_sequences=["zz", "xx"], extra_body=forced
    )
    assert (stopped.stop_reason, stopped.stop_sequence, stopped.content) == ("stop_sequence", "xx", [])
    with serving(scripted_llm("ok")) as url, Anthropic(base_url=url, api_key="none") as client:
        ended = client.messages.create(model="tiny", messages=HI, max_tokens=9)
    assert (ended.stop_reason, ended.stop_sequence) == ("end_turn", None)


def test_an_image_and_an_answer_begun(claude: Anthropic) -> None:
    source: Any = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(png()).decode()}
    turn: Any = {"role": "user", "content": [{"type": "image", "source": source}, {"type": "text", "text": "?"}]}
    without: Any = {"role": "user", "content": [{"type": "text", "text": "?"}]}
    with_image, plain = (
        claude.messages.count_tokens(model="tiny", messages=[each]).input_tokens for each in (turn, without)
    )
    assert with_image > plain + 8
    answered = claude.messages.create(model="tiny", messages=[turn], max_tokens=2, extra_body={"ignore_eos": True})
    assert answered.usage.output_tokens == 2
    begun = [*HI, {"role": "assistant", "content": "So be"}]
    closed = claude.messages.count_tokens(model="tiny", messages=[*begun, without]).input_tokens
    assert claude.messages.count_tokens(model="tiny", messages=begun).input_tokens < closed


@pytest.mark.parametrize("seed", range(3))
def test_a_stream_adds_up_to_the_answer(claude: Anthropic, seed: int) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": HI, "max_tokens": 12, "extra_body": {"seed": seed}}
    whole = claude.messages.create(**asked)
    with claude.messages.stream(**asked) as stream:
        kinds = [event.type for event in stream._raw_stream]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    with claude.messages.stream(**asked) as stream:
        text, last = "".join(stream.text_stream), stream.get_final_message()
    assert text == "".join(block.text for block in whole.content if block.type == "text")
    assert (last.stop_reason, last.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)


def test_tools_and_what_they_answered() -> None:
    llm = scripted_llm("Let me see. " + CALL + CALL)
    with serving(llm) as url, Anthropic(base_url=url, api_key="none") as client:
        asked: dict[str, Any] = {"model": "tiny", "tools": TOOLS, "max_tokens": 400}
        message = client.messages.create(**asked, messages=HI)
        with client.messages.stream(**asked, messages=HI) as stream:
            streamed = stream.get_final_message()
        for answer in (message, streamed):
            text, one, two = answer.content
            assert (answer.stop_reason, text.text) == ("tool_use", "Let me see. ")  # type: ignore[union-attr]
            assert (one.type, one.name, one.input) == ("tool_use", "look", {"at": {"x": [1]}})  # type: ignore[union-attr]
            assert one.id != two.id  # type: ignore[union-attr]
        results = [
            {"type": "tool_result", "tool_use_id": one.id, "content": "42"},  # type: ignore[union-attr]
            {
                "type": "tool_result",
                "tool_use_id": two.id,
                "content": [{"type": "text", "text": "no"}],
                "is_error": True,
            },  # type: ignore[union-attr]
            {"type": "text", "text": "And now?"},
        ]
        blocks = [block.model_dump(exclude_none=True) for block in message.content]
        turns = [*HI, {"role": "assistant", "content": blocks}, {"role": "user", "content": results}]
        client.messages.create(**asked, messages=turns)
    assert isinstance(llm.engine, ScriptedEngine)
    ids = llm.engine.requests[-1].prompt.token_ids
    prompt = b"".join(map(tiny_tokenizer().token_bytes, ids)).decode()
    assert prompt.count('{"name": "look", "arguments": {"at": {"x": [1]}}}') == 2
    answers = "<tool_response>\n42\n</tool_response>\n<tool_response>\nError: no\n</tool_response>"
    assert f"<|im_start|>user\n{answers}<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>" in prompt


def of(*blocks: Any, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": list(blocks)}]}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "owner", "content": "a"}]}, "messages[0].role must be one of"),
        (of({"type": "document"}), "messages[0].content[0].type"),
        (of({"type": "image", "source": {"type": "file"}}), "messages[0].content[0].source.type"),
        (of({"type": "image", "source": {"type": "url", "url": "x y"}}), "messages[0].content[0].source.url"),
        (of({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}),
         "messages[0].content[0].source.data"),
        (of({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A!"}}),
         "messages[0].content[0].source.data contains data that is not base64"),
        (of({"type": "image", "source": {"type": "url", "url": "http://127.1/a.png"}}),
         "messages[0].content[0].source.url"),
        (of({"type": "tool_use", "id": "a", "name": "b", "input": []}, role="assistant"),
         "messages[0].content[0].input"),
        ({"messages": [{"role": "user", "content": "a " * 600}]}, "prompt is too long: "),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        ({"tools": [{"name": "a"}]}, "tools[0].input_schema"),
        ({"tool_choice": {"type": "some"}}, "tool_choice.type"),
        ({"tool_choice": {"type": "tool"}, "tools": TOOLS}, "tool_choice.name is required"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"stop_sequences": [""]}, "stop_sequences[0]"),
        ({"temperature": 3}, "temperature"),
        ({"top_k": "1"}, "top_k"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_field(http: httpx.Client, fields: dict[str, Any], says: str) -> None:
    response = http.post("/v1/messages", json={"messages": HI, "max_tokens": 1, **fields})
    body = response.json()
    assert response.status_code == 400, body
    assert (body["type"], body["error"].keys()) == ("error", {"type", "message"})
    assert body["error"]["type"] == "invalid_request_error"
    assert says in body["error"]["message"]


def test_the_client_raises_its_own_errors(claude: Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="claude-x"):
        claude.messages.create(model="claude-x", messages=HI, max_tokens=1)
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        claude.messages.create(model="tiny", messages=HI, max_tokens=1, extra_body={"temperature": 7})


def test_a_failure_within_a_stream_is_its_last_event() -> None:
    body = {"messages": HI, "max_tokens": 50, "stream": True}
    with serving(scripted_llm("hello", fail_after=2)) as url:
        text = httpx.post(f"{url}/v1/messages", json=body).text
    name, data = text.strip().split("\n\n")[-1].split("\ndata: ")
    assert (name, json.loads(data)["error"]["type"]) == ("event: error", "api_error")
    assert "secret" not in text


def test_an_output_format_is_kept_to(claude: Anthropic) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    form: Any = {"format": {"type": "json_schema", "schema": {**schema, "additionalProperties": False}}}
    message = claude.messages.create(model="tiny", messages=HI, max_tokens=60, output_config=form)
    (block,) = message.content
    assert block.type == "text"
    assert json.loads(block.text).keys() == {"ok"}


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"effort": "great"}, "output_config.effort"),
        ({"format": {"type": "json_schema", "schema": {"not": {}}}}, "output_config.format.schema"),
        ({"format": {"type": "regex"}}, "output_config.format.type"),
    ],
)
def test_an_output_config_that_is_not_served_is_named(url: str, config: dict[str, Any], named: str) -> None:
    body = {"messages": HI, "max_tokens": 3, "output_config": config}
    response = httpx.post(f"{url}/v1/messages", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(named)


def test_a_call_that_max_tokens_cut_has_the_input_that_there_is() -> None:
    properties = {"n": {"enum": [1, 2]}, "a": {"type": "string"}}
    schema = {"type": "object", "properties": properties, "required": ["n", "a"], "additionalProperties": False}
    asked: Any = {
        "model": "tiny",
        "messages": HI,
        "tools": [{"name": "look", "input_schema": schema}],
        "tool_choice": {"type": "any"},
        "extra_body": GREEDY,
    }
    inputs = []
    with (
        serving(tiny_llm(max_model_len=1024)) as url,
        Anthropic(base_url=url, api_key="none", max_retries=0) as client,
    ):
        for max_tokens in (35, 40, 44, 52):
            message = client.messages.create(max_tokens=max_tokens, **asked)
            with client.messages.stream(max_tokens=max_tokens, **asked) as stream:
                (streamed,) = stream.get_final_message().content
            (block,) = message.content
            assert message.stop_reason == "max_tokens"
            assert block.type == streamed.type == "tool_use"
            assert block.input == streamed.input
            inputs.append(block.input)
    assert inputs[0] == {}
    assert inputs[-1] in ({"n": 1}, {"n": 2})
