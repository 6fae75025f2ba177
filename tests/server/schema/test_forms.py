"""`response_format`, `structured_outputs` and `guided_*`, live, on random weights and on the embedded model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest
from openai import OpenAI
from pydantic import BaseModel

from ternvl.llm import LLM
from ternvl.params import Grammar, SamplingParams
from tests.server.calling import CHAT
from tests.server.fakes import serving, tiny_llm

HI = {"messages": [{"role": "user", "content": "Name the european capitals"}]}
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "mood": {"enum": ["früh", "spät", 3]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["city", "mood", "tags"],
    "additionalProperties": False,
}


class Capital(BaseModel):
    small: bool
    letters: list[bool]


@pytest.fixture(scope="module", params=["random", "embedded"])
def served(request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    llm = tiny_llm(max_model_len=1024) if request.param == "random" else LLM(max_model_len=1024)
    with serving(llm) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def as_schema(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **more}}


def ask(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    response = client.post(CHAT, json={**HI, "max_tokens": 300, "seed": 1, **fields})
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


@pytest.mark.parametrize("temperature", [0, 1, 2])
@pytest.mark.parametrize("strict", [True, False])
def test_an_answer_fulfils_its_schema(served: httpx.Client, temperature: int, strict: bool) -> None:
    choice = ask(served, response_format=as_schema(SCHEMA, strict=strict), temperature=temperature)
    assert choice["finish_reason"] == "stop"
    jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMA)


def test_a_json_object_that_ends_is_one(served: httpx.Client) -> None:
    choices = [ask(served, response_format={"type": "json_object"}, temperature=2, seed=seed) for seed in range(6)]
    ended = [choice for choice in choices if choice["finish_reason"] == "stop"]
    assert ended
    assert all(isinstance(json.loads(choice["message"]["content"]), dict) for choice in ended)


@pytest.mark.parametrize(
    ("fields", "regex"),
    [
        ({"structured_outputs": {"regex": r"\d{3}-[a-f]{2}"}}, "[0-9]{3}-[a-f]{2}"),
        ({"guided_regex": "(ja|nein)!"}, "(ja|nein)!"),
        ({"structured_outputs": {"choice": ["größer", "kleiner"]}}, "größer|kleiner"),
        ({"guided_choice": ["a", "ab"]}, "ab?"),
        ({"structured_outputs": {"grammar": 'start: "x" ("y" | "z"){2}'}}, "x[yz]{2}"),
        ({"guided_grammar": 'root ::= "x" [0-9] [0-9]'}, "x[0-9][0-9]"),
        ({"structured_outputs": {"json": {"type": "integer", "minimum": 5, "maximum": 9}}}, "[5-9]"),
        ({"guided_json": '{"const": {"a": 1}}'}, r'\{\s*"a"\s*:\s*1\s*\}'),
    ],
)
def test_other_forms_of_an_answer(served: httpx.Client, fields: dict[str, Any], regex: str) -> None:
    for seed in range(3):
        choice = ask(served, **fields, temperature=2, seed=seed)
        assert choice["finish_reason"] == "stop"
        assert re.fullmatch(regex, choice["message"]["content"])


@pytest.mark.parametrize("number", ["9007199254740993", "1234567890123456789", "0.12345678901234567890", "1e400"])
def test_numbers_come_back_with_all_their_digits(served: httpx.Client, number: str) -> None:
    schema = '{"type": "object", "properties": {"a": {"enum": [' + number + ']}}, "required": ["a"]}'
    form = '{"type": "json_schema", "json_schema": {"name": "a", "schema": ' + schema + "}}"
    called = '[{"type": "function", "function": {"name": "f", "parameters": ' + schema + "}}]"
    for field, value in (("response_format", form), ("guided_json", json.dumps(schema)), ("tools", called)):
        more = ', "tool_choice": "required", "parallel_tool_calls": false' if field == "tools" else ""
        body = json.dumps({**HI, "max_tokens": 200, "seed": 1})[:-1] + f', "{field}": {value}{more}' + "}"
        response = served.post(CHAT, content=body, headers={"Content-Type": "application/json"})
        message = response.json()["choices"][0]["message"]
        text = message["tool_calls"][0]["function"]["arguments"] if field == "tools" else message["content"]
        assert re.fullmatch(r'\{\s*"a"\s*:\s*(\S+?)\s*\}', text)[1] == number  # type: ignore[index]


def test_objects_have_unlisted_properties_only_on_request(served: httpx.Client) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    fields = {"response_format": as_schema(schema), "temperature": 2, "max_tokens": 60}
    for more in ({}, {"structured_outputs": {"disable_additional_properties": True}}):
        for seed in range(3):
            assert json.loads(ask(served, **fields, **more, seed=seed)["message"]["content"]).keys() == {"a"}
    opened = {"structured_outputs": {"disable_additional_properties": False}}
    assert any("," in ask(served, **fields, **opened, seed=seed)["message"]["content"] for seed in range(12))


def test_a_stream_is_the_same_answer(served: httpx.Client) -> None:
    fields = {**HI, "max_tokens": 300, "seed": 3, "temperature": 1.5, "response_format": as_schema(SCHEMA)}
    lines = served.post(CHAT, json={**fields, "stream": True}).text.split("\n\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    streamed = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert streamed == ask(served, **fields)["message"]["content"]


def test_the_clients_parse_helper(served: httpx.Client) -> None:
    with OpenAI(base_url=f"{served.base_url}/v1", api_key="-", timeout=60) as client:
        answer = client.chat.completions.parse(
            model=client.models.list().data[0].id,
            messages=[{"role": "user", "content": "Name a capital"}],
            response_format=Capital,
            max_tokens=400,
            seed=2,
        )
    assert isinstance(answer.choices[0].message.parsed, Capital)


def test_max_tokens_cuts(served: httpx.Client) -> None:
    choice = ask(served, structured_outputs={"regex": "a{50}"}, max_tokens=4)
    assert choice["finish_reason"] == "length"
    assert re.fullmatch("a{4,49}", choice["message"]["content"])


def test_log_probabilities_of_a_constrained_answer_are_json(served: httpx.Client) -> None:
    choice = ask(served, guided_choice=["yes", "no"], logprobs=True, top_logprobs=5)
    listed = choice["logprobs"]["content"]
    assert "".join(entry["token"] for entry in listed) == choice["message"]["content"]
    assert all(entry["logprob"] <= 0 and entry["top_logprobs"] for entry in listed)


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"response_format": as_schema({"not": {}})}, "response_format.json_schema.schema", '"not"'),
    ({"response_format": as_schema({"$ref": "#"})}, "response_format.json_schema.schema", "recursive"),
    (
        {"response_format": as_schema({"properties": {f"p{i}": {} for i in range(10_000)}})},
        "response_format.json_schema.schema",
        "1000 properties",
    ),
    ({"structured_outputs": {"regex": "(?=a)"}}, "structured_outputs.regex", "look-around"),
    ({"guided_json": "{"}, "guided_json", "JSON"),
    ({"guided_grammar": "start: y"}, "guided_grammar", "unknown name"),
    ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex", "one form"),
    ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice", "one form"),
]


@pytest.mark.parametrize(("fields", "param", "words"), REFUSED, ids=[param for _, param, _ in REFUSED])
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_not_served_is_400_and_the_server_serves_on(
    served: httpx.Client, fields: dict[str, Any], param: str, words: str, stream: bool
) -> None:
    response = served.post(CHAT, json={**HI, **fields, "stream": stream})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert words in error["message"]
    assert ask(served, max_tokens=1, ignore_eos=True)["finish_reason"] == "length"


def test_text_is_no_constraint_at_all(served: httpx.Client) -> None:
    free = ask(served, max_tokens=20)
    assert ask(served, max_tokens=20, response_format={"type": "text"}) == free


def test_the_offline_api_takes_the_same_grammars() -> None:
    params = SamplingParams(grammar=Grammar.of("json_schema", SCHEMA), temperature=2, seed=4, max_tokens=300)
    output = tiny_llm(max_model_len=1024).chat(HI["messages"], params)[0]
    jsonschema.validate(json.loads(output.text), SCHEMA)
