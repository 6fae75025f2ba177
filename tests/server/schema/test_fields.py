"""Fields that are unknown, documented and not served, or wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ternvl.errors import RequestError
from ternvl.server.protocols.adapters import LoadRequest, UnloadRequest
from ternvl.server.protocols.chat_schema import ChatRequest
from ternvl.server.protocols.completions_schema import CompletionRequest
from ternvl.server.protocols.messages_schema import CountTokensRequest, MessagesRequest
from ternvl.server.protocols.responses_schema import ResponseRequest
from ternvl.server.protocols.tokens import DetokenizeRequest, TokenizeRequest
from ternvl.server.schema.fields import UNSUPPORTED as CODE
from ternvl.server.schema.fields import ignored_header, known_values, parse
from ternvl.server.schema.known import KNOWN_FIELDS
from ternvl.server.schema.types import Schema


def parse_chat(body: Any, *, strict: bool = False) -> tuple[ChatRequest, list[str]]:
    return parse(ChatRequest, body, protocol="chat", strict=strict)


USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(("body", "kind"), [([], "an array"), ("x", "a string"), (None, "null"), (True, "a boolean")])
def test_the_body_must_be_an_object(body: Any, kind: str) -> None:
    with pytest.raises(RequestError, match=kind):
        parse_chat(body)


def test_unknown_fields_are_reported_with_their_path_and_refused_when_strict() -> None:
    part = {"type": "text", "text": "a", "size": 3}
    body = {"messages": [{"role": "user", "content": [part], "mood": "good"}], "colour": 1, "nothing": None}
    _, ignored = parse_chat(body)
    assert sorted(ignored) == ["colour", "messages[0].content[0].size", "messages[0].mood"]
    with pytest.raises(RequestError) as refusal:
        parse_chat(body, strict=True)
    assert (refusal.value.param, refusal.value.code) == ("colour", "unknown_field")


def test_names_and_advice_on_caching_within_messages_are_accepted() -> None:
    part = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}, "prompt_cache_breakpoint": {}}
    turns = [{"role": role, "content": "a", "name": "bob"} for role in ("system", "developer", "user", "assistant")]
    turns += [{"role": "user", "content": [part], "name": ""}]
    turns += [{"role": "tool", "content": "a", "tool_call_id": "1", "name": "look"}]
    assert parse_chat({"messages": turns}, strict=True)[1] == []
    for turn in turns:
        with pytest.raises(RequestError) as refusal:
            parse_chat({"messages": [turn | {"name": 3}]})
        assert refusal.value.param == "messages[0].name"


UNSUPPORTED = [
    {"store": True},
    {"service_tier": "flex"},
    {"modalities": ["text", "audio"]},
    {"chat_template_kwargs": {"enable_thinking": True}},
    {"chat_template_kwargs": {"enable_thinking": False, "language": "de"}},
    {"chat_template": "{{ x }}"},
    {"functions": [{"name": "look"}]},
    {"function_call": {"name": "look"}},
    {"reasoning_effort": "high"},
    {"return_token_ids": True},
    {"max_output_tokens": 5},
    {"audio": {}},
]


@pytest.mark.parametrize("fields", UNSUPPORTED, ids=json.dumps)
def test_a_documented_field_is_never_accepted_and_ignored(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as refusal:
        parse_chat({"messages": [USER], **fields})
    assert (refusal.value.param, refusal.value.code) == (next(iter(fields)), "unsupported_parameter")


@pytest.mark.parametrize("strict", [False, True])
def test_a_long_name_does_not_make_a_long_error(strict: bool) -> None:
    name = "x" * 100_000
    with pytest.raises(RequestError) as refusal:
        parse_chat({"messages": [USER], **({name: 1} if strict else {"metadata": {name: 1}})}, strict=strict)
    assert len(str(refusal.value)) < 500
    assert len(refusal.value.param or "") == 200


def test_ignored_header_holds_nothing_but_header_characters() -> None:
    value = ignored_header(["a.b[0]", "evil\r\nSet-Cookie: x", "é,", *["long" * 50] * 40])
    assert value.isascii()
    assert value.isprintable()
    assert value.startswith("a.b[0],evil%0D%0ASet-Cookie:%20x,%C3%A9%2C,")
    assert len(value) < 1_100


REQUESTS: list[tuple[str, type[Schema], dict[str, Any]]] = [
    ("chat", ChatRequest, {"messages": [USER]}),
    ("completions", CompletionRequest, {"prompt": "a"}),
    ("responses", ResponseRequest, {"input": "a"}),
    ("messages", MessagesRequest, {"messages": [USER], "max_tokens": 1}),
    ("messages", CountTokensRequest, {"messages": [USER]}),
    ("tokens", TokenizeRequest, {"prompt": "a"}),
    ("tokens", DetokenizeRequest, {"tokens": [1]}),
    ("adapters", LoadRequest, {"lora_name": "a", "lora_path": "b"}),
    ("adapters", UnloadRequest, {"lora_name": "a"}),
]


@pytest.mark.parametrize(("protocol", "schema", "body"), REQUESTS, ids=lambda each: getattr(each, "__name__", None))
def test_a_known_field_takes_its_values_and_no_other(protocol: str, schema: type[Schema], body: dict[str, Any]) -> None:
    known = known_values(protocol, schema)
    assert known
    assert not known.keys() & schema.model_fields.keys()
    for name, values in known.items():
        for value in (*values, *(dict.fromkeys(each) for each in values if isinstance(each, dict)), None):
            assert parse(schema, {**body, name: value}, protocol=protocol, strict=True)[1] == []
        with pytest.raises(RequestError) as refusal:
            parse(schema, {**body, name: "something else"}, protocol=protocol)
        assert (refusal.value.param, refusal.value.code) == (name, CODE)


def test_known_values_are_those_of_the_protocol_without_what_its_schema_defines() -> None:
    assert known_values("responses", ResponseRequest)["n"] == (1,)
    assert "n" not in known_values("chat", ChatRequest)
    assert known_values("chat", ChatRequest)["echo"] == (False,)
    assert "echo" not in known_values("completions", CompletionRequest)
    assert known_values("messages", MessagesRequest)["service_tier"] == ("auto", "standard_only")
    assert known_values("chat", ChatRequest)["service_tier"] == ("auto", "default")
    assert known_values("adapters", LoadRequest) == {"load_inplace": (True,)}
    assert known_values("messages", MessagesRequest)["n"] == (1,)
    assert known_values("completions", CompletionRequest)["system"] == ()
    assert "system" not in known_values("messages", MessagesRequest)


def test_every_row_of_the_table_serves_a_protocol() -> None:
    used = {(protocol, name) for protocol, schema, _ in REQUESTS for name in known_values(protocol, schema)}
    assert [row.name for row in KNOWN_FIELDS if not used & {(each, row.name) for each in row.protocols}] == []


def test_true_is_not_1_in_a_known_value() -> None:
    assert parse_chat({"messages": [USER], "best_of": 1.0})[1] == []
    with pytest.raises(RequestError) as refusal:
        parse_chat({"messages": [USER], "best_of": True})
    assert refusal.value.param == "best_of"
