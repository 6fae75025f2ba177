"""Fields that are unknown, documented and not served, or wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ternvl.errors import RequestError
from ternvl.server.protocols.chat_schema import ChatRequest
from ternvl.server.schema.fields import ignored_header, parse


def parse_chat(body: Any, *, strict: bool = False) -> tuple[ChatRequest, list[str]]:
    return parse(ChatRequest, body, protocol="chat", strict=strict)


USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(("body", "kind"), [([], "an array"), ("x", "a string"), (None, "null"), (True, "a boolean")])
def test_the_body_must_be_an_object(body: Any, kind: str) -> None:
    with pytest.raises(RequestError, match=kind):
        parse_chat(body)


def test_unknown_fields_are_reported_with_their_path_and_refused_when_strict() -> None:
    part = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
    body = {"messages": [{"role": "user", "content": [part], "name": "bob"}], "colour": 1, "nothing": None}
    _, ignored = parse_chat(body)
    assert sorted(ignored) == ["colour", "messages[0].content[0].cache_control", "messages[0].name"]
    with pytest.raises(RequestError) as refusal:
        parse_chat(body, strict=True)
    assert (refusal.value.param, refusal.value.code) == ("colour", "unknown_field")


UNSUPPORTED = [
    {"store": True},
    {"service_tier": "flex"},
    {"modalities": ["text", "audio"]},
    {"chat_template_kwargs": {}},
    {"chat_template": "{{ x }}"},
    {"functions": []},
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
    assert value.startswith("a.b[0],evil%0D%0ASet-Cookie%3A%20x,%C3%A9%2C,")
    assert len(value) < 1_100
