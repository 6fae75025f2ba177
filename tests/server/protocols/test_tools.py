"""Tools by constrained decoding: random tool sets on random weights and the embedded model, judged by jsonschema."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest
from openai import OpenAI

from ternvl.llm import LLM
from tests.fakes import tiny_tokenizer
from tests.server.calling import CHAT, HI, PARAMETERS, ask, tool
from tests.server.fakes import serving, tiny_llm


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with serving(tiny_llm(max_model_len=4096)) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.mark.parametrize("model", ["random", "embedded"])
def test_every_call_of_random_tool_sets_parses_matches_and_streams_alike(benchmark: Any, model: str) -> None:
    rng = random.Random(model)
    bodies = [benchmark.random_request(rng, max_tokens=150) for _ in range(24 if model == "random" else 12)]
    llm = benchmark.random_llm(5) if model == "random" else LLM(max_model_len=4096)
    found = asyncio.run(benchmark.ask_all(llm, bodies))
    assert found["calls"] > len(bodies) // 4
    assert set(found) <= {"calls", "cut"}, found


def test_the_judge_sees_what_is_wrong(benchmark: Any) -> None:
    body = {"tools": [tool("f")], "tool_choice": "required", "parallel_tool_calls": False}

    def judged(*calls: tuple[str, str], content: str | None = None) -> dict[str, int]:
        listed = [{"function": {"name": name, "arguments": arguments}} for name, arguments in calls]
        message = {"content": content, "tool_calls": listed}
        return dict(benchmark.judge(body, {"message": message, "finish_reason": "tool_calls"}))

    assert judged(("f", '{"city": "Bern"}')) == {"calls": 1}
    assert judged(("f", "{")) == {"calls": 1, "unparsable": 1}
    assert judged(("g", '{"city": "Bern"}')) == {"calls": 1, "violations": 1}
    assert judged(("f", '{"days": 3}')) == {"calls": 1, "violations": 1}
    assert judged(("f", '{"city": ""}'), ("f", '{"city": ""}')) == {"calls": 2, "violations": 1}
    assert judged(content="<tool_call>") == {"missing": 1, "unparsable": 1}


@pytest.mark.parametrize("temperature", [0, 1, 2])
def test_required_is_calls_alone(client: httpx.Client, temperature: int) -> None:
    tools = {"tools": [tool("look"), tool("find")], "tool_choice": "required", "parallel_tool_calls": False}
    choice = ask(client, **tools, temperature=temperature)
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] in ("look", "find")
    jsonschema.validate(json.loads(call["function"]["arguments"]), PARAMETERS)


@pytest.mark.parametrize("seed", range(4))
def test_a_named_function_is_called_once(client: httpx.Client, seed: int) -> None:
    choice = ask(
        client,
        tools=[tool("look"), tool("find")],
        tool_choice={"type": "function", "function": {"name": "find"}},
        seed=seed,
    )
    assert choice["finish_reason"] == "tool_calls"
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["find"]


def test_calls_are_parallel_unless_it_is_forbidden(client: httpx.Client) -> None:
    fields = {"tools": [tool("f", {"type": "object", "maxProperties": 0})], "tool_choice": "required"}
    counts = {
        parallel: {
            len(ask(client, **fields, seed=seed, **parallel_field)["message"]["tool_calls"]) for seed in range(12)
        }
        for parallel, parallel_field in ((True, {}), (False, {"parallel_tool_calls": False}))
    }
    assert counts[False] == {1}
    assert max(counts[True]) > 1


def test_of_tools_with_one_name_any_is_called(client: httpx.Client) -> None:
    """The page's schema allows them."""
    kinds = [{"type": "object", "required": [name], "maxProperties": 1} for name in "ab"]
    kinds = [kind | {"properties": {name: {"type": "boolean"}}} for kind, name in zip(kinds, "ab", strict=True)]
    kinds = [kind | {"additionalProperties": False} for kind in kinds]
    seen = set()
    for seed in range(8):
        choice = ask(client, tools=[tool("f", kind) for kind in kinds], tool_choice="required", seed=seed)
        for call in choice["message"]["tool_calls"]:
            seen.update(json.loads(call["function"]["arguments"]))
    assert seen == {"a", "b"}


@pytest.mark.parametrize("function", [{}, {"parameters": None}, {"parameters": {"type": "object", "properties": {}}}])
def test_a_function_without_parameters_takes_no_arguments(client: httpx.Client, function: dict[str, Any]) -> None:
    """OpenAI: "Omitting `parameters` defines a function with an empty parameter list.\""""
    bare = {"type": "function", "function": {"name": "now", **function}}
    for seed in range(4):
        choice = ask(client, tools=[bare], tool_choice="required", parallel_tool_calls=False, temperature=2, seed=seed)
        (call,) = choice["message"]["tool_calls"]
        assert (choice["finish_reason"], json.loads(call["function"]["arguments"])) == ("tool_calls", {})


def test_a_function_of_any_object_takes_one(client: httpx.Client) -> None:
    bare = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}
    ended = Counter[str]()
    for seed in range(8):
        choice = ask(client, tools=[bare], tool_choice="required", parallel_tool_calls=False, temperature=2, seed=seed)
        ended[choice["finish_reason"]] += 1
        (call,) = choice["message"]["tool_calls"]
        if choice["finish_reason"] == "tool_calls":
            assert isinstance(json.loads(call["function"]["arguments"]), dict)
        else:
            assert call["function"]["arguments"].startswith("{")
    assert ended["tool_calls"] > 0
    assert ended["length"] > 0


def test_with_auto_the_answer_is_text_or_fulfils_its_format(client: httpx.Client) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    schema["additionalProperties"] = False
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    kinds = set()
    for seed in range(16):
        choice = ask(client, tools=[tool("f")], response_format=form, temperature=2, seed=seed)
        kinds.add(choice["finish_reason"])
        if choice["finish_reason"] == "stop":
            jsonschema.validate(json.loads(choice["message"]["content"]), schema)
    assert kinds == {"stop", "tool_calls"}


def test_none_leaves_the_answer_free(client: httpx.Client) -> None:
    told = ask(client, tools=[tool("f")], tool_choice="none", max_tokens=20)
    assert told == ask(client, max_tokens=20)


def test_through_the_client_with_a_strict_tool(client: httpx.Client) -> None:
    with OpenAI(base_url=f"{client.base_url}/v1", api_key="-") as openai:
        asked: dict[str, Any] = {
            "model": "tiny",
            "messages": HI["messages"],
            "tools": [tool("look", strict=True)],
            "tool_choice": "required",
            "parallel_tool_calls": False,
            "seed": 3,
        }
        with openai.chat.completions.stream(**asked) as stream:
            streamed = stream.get_final_completion().choices[0].message.tool_calls
        whole = openai.chat.completions.create(**asked).choices[0].message.tool_calls
    assert streamed
    assert whole
    assert [call.function.arguments for call in streamed] == [call.function.arguments for call in whole]  # type: ignore[union-attr]


def test_rules_that_are_not_enforced_are_named_in_a_header(client: httpx.Client) -> None:
    rules = {"type": "object", "properties": {"x": {"type": "array", "items": {"const": 1}, "uniqueItems": True}}}
    fields = {**HI, "tools": [tool("f"), tool("g", rules)], "max_tokens": 5}
    for stream in (False, True):
        response = client.post(CHAT, json={**fields, "stream": stream})
        assert response.status_code == 200
        assert response.headers["x-ternvl-unenforced-schema"] == "tools[1].function.parameters.properties.x.uniqueItems"
    assert "x-ternvl-unenforced-schema" not in client.post(CHAT, json={**fields, "tools": [tool("f")]}).headers
    strict = client.post(CHAT, json={**fields, "tools": [tool("f"), tool("g", rules, strict=True)]})
    assert strict.status_code == 400
    assert "uniqueItems" in strict.json()["error"]["message"]


LISTED = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
CALLS: dict[str, dict[str, Any]] = {
    CHAT: {**HI, "tools": [tool("f", LISTED)], "tool_choice": "required", "parallel_tool_calls": False},
    "/v1/responses": {
        "input": "hi",
        "tools": [{"type": "function", "name": "f", "parameters": LISTED}],
        "tool_choice": "required",
        "parallel_tool_calls": False,
    },
    "/v1/messages": {
        **HI,
        "tools": [{"name": "f", "input_schema": LISTED}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    },
}


def _arguments(answer: dict[str, Any]) -> Any:
    return answer["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"]


@pytest.mark.parametrize("path", CALLS)
def test_arguments_have_unlisted_properties_only_on_request(client: httpx.Client, path: str) -> None:
    limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"

    bias = {str(token_id): 100 for token_id in tiny_tokenizer().encode_text(",")}

    def arguments(**more: Any) -> Any:
        body = {**CALLS[path], limit: 60, "temperature": 0, "logit_bias": bias, "stream": path == "/v1/messages"} | more
        response = client.post(path, json=body)
        if body["stream"]:  # `input` of a call that is cut lacks what was not complete
            events = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: ")]
            return "".join(event.get("delta", {}).get("partial_json", "") for event in events)
        answer = response.json()
        return answer["output"][0]["arguments"] if "output" in answer else _arguments(answer)

    assert json.loads(arguments()).keys() == {"a"}
    assert "," in arguments(structured_outputs={"disable_additional_properties": False})


UNSERVED_FORM = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}}
UNSERVED = tool("g", {"type": "object", "properties": {"x": {"uniqueItems": True}}}, strict=True)
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": "required", "tools": []}, "tool_choice"),
    (
        {"tool_choice": {"type": "function", "function": {"name": "h"}}, "tools": [tool("f")]},
        "tool_choice.function.name",
    ),
    ({"tools": [tool("f"), UNSERVED]}, "tools[1].function.parameters"),
    ({"tools": [tool("f"), UNSERVED], "tool_choice": "required"}, "tools[1].function.parameters"),
    ({"tools": [tool("f", {"type": "string"})]}, "tools[0].function.parameters"),
    ({"tools": [tool("f", {"$ref": "#"})]}, "tools[0].function.parameters"),
    ({"tools": [tool("f", {"properties": {f"p{i}": {} for i in range(10_000)}})]}, "tools[0].function.parameters"),
    ({"tools": [tool("f")], "guided_regex": "a"}, "guided_regex"),
    (
        {"tools": [tool("f")], "response_format": UNSERVED_FORM},
        "response_format.json_schema.schema",
    ),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=[f"{param}-{i}" for i, (_, param) in enumerate(REFUSED)])
def test_what_cannot_be_called_is_400(client: httpx.Client, fields: dict[str, Any], param: str) -> None:
    response = client.post(CHAT, json={**HI, **fields})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert ask(client, max_tokens=1, ignore_eos=True)["finish_reason"] == "length"
