"""`/v1/responses` as the openai client sees it."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from openai import BadRequestError, OpenAI

from tests.fakes import tiny_tokenizer
from tests.server.fakes import ScriptedEngine, scripted_llm, serving
from tests.server.images import data_uri, png

CALL = '<tool_call>\n{"name": "look", "arguments": {"at": {"x": [1]}}}\n</tool_call>'
TOOLS: list[Any] = [
    {"type": "function", "name": "look", "description": "Looks.", "parameters": {"type": "object"}, "strict": False}
]


def test_the_answer_is_that_of_chat(client: OpenAI) -> None:
    response = client.responses.create(
        model="tiny", input="hi", instructions="Be brief.", max_output_tokens=9, temperature=0
    )
    chat = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
        max_tokens=9,
        temperature=0,
    )
    assert response.output_text == chat.choices[0].message.content
    assert (response.object, response.model, response.id[:5]) == ("response", "tiny", "resp_")
    assert response.usage is not None
    assert chat.usage is not None
    assert response.usage.input_tokens == chat.usage.prompt_tokens
    assert response.usage.output_tokens == chat.usage.completion_tokens
    assert (response.temperature, response.instructions) == (0, "Be brief.")


def test_an_answer_that_is_cut_is_incomplete(client: OpenAI) -> None:
    response = client.responses.create(model="tiny", input="hi", max_output_tokens=2, extra_body={"ignore_eos": True})
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output[0].status == "incomplete"  # type: ignore[union-attr]


def test_an_image(client: OpenAI) -> None:
    image = {"type": "input_image", "image_url": data_uri(png()), "detail": "low"}
    items: Any = [{"role": "user", "content": [{"type": "input_text", "text": "?"}, image]}]
    response = client.responses.create(model="tiny", input=items, max_output_tokens=3)
    assert response.usage is not None
    assert response.usage.input_tokens_details.image_tokens == 4  # type: ignore[attr-defined]


EVENTS = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
]


@pytest.mark.parametrize("seed", range(3))
def test_a_stream_has_the_events_in_their_order(client: OpenAI, seed: int) -> None:
    body = {"seed": seed, "logit_bias": {str(tiny_tokenizer().encode_text("a")[0]): 5}}
    asked: dict[str, Any] = {"model": "tiny", "input": "hi", "max_output_tokens": 12, "extra_body": body}
    whole = client.responses.create(**asked)
    events = list(client.responses.create(**asked, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = list(dict.fromkeys(event.type for event in events))
    assert kinds == [*EVENTS, f"response.{whole.status}"]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    last = events[-1].response  # type: ignore[union-attr]
    assert text == whole.output_text == last.output_text
    assert last.usage == whole.usage
    assert events[0].response.output == []  # type: ignore[union-attr]


def test_tools_and_what_they_answered() -> None:
    llm = scripted_llm("Let me see. " + CALL + CALL)
    with serving(llm) as url, OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        response = client.responses.create(model="tiny", input="hi", tools=TOOLS)
        text, one, two = response.output
        assert text.content[0].text == "Let me see. "  # type: ignore[union-attr, index]
        assert (one.type, two.type, one.name) == ("function_call", "function_call", "look")  # type: ignore[union-attr]
        assert json.loads(one.arguments) == {"at": {"x": [1]}}  # type: ignore[union-attr]
        assert one.call_id != two.call_id  # type: ignore[union-attr]
        events = list(client.responses.create(model="tiny", input="hi", tools=TOOLS, stream=True))
        done = [event for event in events if event.type == "response.function_call_arguments.done"]
        deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
        assert "".join(deltas) == "".join(event.arguments for event in done)
        items = [item.model_dump(exclude_none=True) for item in response.output]
        results = [
            {"type": "function_call_output", "call_id": one.call_id, "output": "42"},  # type: ignore[union-attr]
            {"type": "function_call_output", "call_id": two.call_id, "output": [{"type": "input_text", "text": "43"}]},  # type: ignore[union-attr]
        ]
        items = [{"role": "user", "content": "hi"}, *items, *results]
        client.responses.create(model="tiny", input=items, tools=TOOLS)  # type: ignore[arg-type]
    assert isinstance(llm.engine, ScriptedEngine)
    ids = llm.engine.requests[-1].prompt.token_ids
    prompt = b"".join(map(tiny_tokenizer().token_bytes, ids)).decode()
    assert prompt.count('{"name": "look", "arguments": {"at": {"x": [1]}}}') == 2
    answers = "<tool_response>\n42\n</tool_response>\n<tool_response>\n43\n</tool_response>"
    assert prompt.count(answers) == 1
    assert prompt.count("<|im_start|>assistant") == 2, "the calls belong to the text before them"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": 5}, "input"),
        ({"input": [{"role": "owner", "content": "a"}]}, "input[0].role"),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type"),
        ({"input": [{"type": "reasoning"}]}, "input"),
        ({"input": [{"role": "system", "content": [{"type": "input_image", "image_url": "data:,x"}]}]},
         "input[0].content[0]"),
        ({"input": [{"type": "function_call_output", "call_id": "a",
                     "output": [{"type": "input_image", "image_url": "data:,x"}]}]},
         "input[0].output[0].image_url"),
        ({"input": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x y"}]}]},
         "input[0].content[0].image_url"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,x"}]}]},
         "input[0].content[0].image_url"),
        ({"input": "a " * 600}, "input"),
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"n": 2}, "n"),
        ({"tools": [{"type": "file_search", "vector_store_ids": ["a"]}]}, "tools[0].type"),
        ({"tools": [{"type": "local_shell"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"logit_bias": {"999999": 1}}, "logit_bias.999999"),
        ({"model": "gpt-5"}, "model"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_field(http: httpx.Client, fields: dict[str, Any], param: str) -> None:
    response = http.post("/v1/responses", json={"input": "a", "max_output_tokens": 1, **fields})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (404 if param == "model" else 400, param)
    assert "messages" not in error["message"]


def test_a_failure_within_a_stream_is_its_last_event() -> None:
    with serving(scripted_llm("hello", fail_after=2)) as url:
        text = httpx.post(f"{url}/v1/responses", json={"input": "a", "stream": True}).text
    *before, last = [json.loads(event.split("\ndata: ")[1]) for event in text.split("\n\n")[:-1]]
    assert (last["type"], last["sequence_number"]) == ("error", len(before))
    assert "secret" not in text
    assert "[DONE]" not in text


def test_the_client_raises_its_own_error(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="previous_response_id"):
        client.responses.create(model="tiny", input="a", previous_response_id="resp_1")
