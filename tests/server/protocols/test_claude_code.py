"""What Anthropic's Claude Code sends to `/v1/messages` and `/v1/messages/count_tokens`, and what it reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from ternvl.config import EngineConfig
from tests.fakes import tiny_tokenizer
from tests.server.fakes import ScriptedEngine, scripted_llm, serving, tiny_llm

CACHED = {"type": "ephemeral", "ttl": "1h", "scope": "global"}
READ = {
    "name": "Read",
    "description": "Reads a file from the local filesystem.",
    "input_schema": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "file_path": {"type": "string", "description": "The absolute path"},
            "limit": {"type": "integer", "exclusiveMinimum": 0, "maximum": 9007199254740991},
        },
        "required": ["file_path"],
        "additionalProperties": False,
    },
    "eager_input_streaming": True,
}
EDIT = {
    "type": "custom",
    "name": "Edit",
    "description": "Replaces text.",
    "strict": False,
    "input_schema": {"type": "object", "properties": {"old_string": {"type": "string"}}, "required": ["old_string"]},
    "input_examples": [{"old_string": "a"}],
    "cache_control": {"type": "ephemeral"},
}
WEB_SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}
REQUEST: dict[str, Any] = {
    "model": "tiny",
    "max_tokens": 32_000,
    "stream": True,
    "system": [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1; cc_entrypoint=cli; cch=00000;"},
        {"type": "text", "text": "You are Claude Code.", "cache_control": CACHED},
        {"type": "text", "text": "You are an interactive agent.", "cache_control": {"type": "ephemeral"}},
    ],
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "<system-reminder>\nToday is ...\n</system-reminder>"},
                {"type": "text", "text": "What is in a.txt?", "cache_control": {"type": "ephemeral"}},
            ],
        }
    ],
    "tools": [READ, EDIT],
    "metadata": {"user_id": '{"device_id":"x","account_uuid":"","session_id":"y"}'},
    "thinking": {"type": "adaptive", "display": "omitted"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "output_config": {"effort": "high"},
}
HEADERS = {
    "anthropic-version": "2023-06-01",
    "anthropic-beta": "claude-code-20250219,context-management-2025-06-27,effort-2025-11-24",
    "x-app": "cli",
    "authorization": "Bearer none",
    "x-stainless-helper-method": "stream",
}
CALL = '<tool_call>\n{"name": "Read", "arguments": {"file_path": "/a.txt"}}\n</tool_call>'


def scripted(text: str) -> Any:
    return scripted_llm(text, config=EngineConfig(max_model_len=8192))


def post(url: str, path: str = "/v1/messages", **fields: Any) -> httpx.Response:
    body = {name: value for name, value in {**REQUEST, **fields}.items() if value is not ...}
    return httpx.post(f"{url}{path}?beta=true", json=body, headers=HEADERS, timeout=60)


def events(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    pieces = response.text.split("\n\n")[:-1]
    found = [json.loads(piece.split("\ndata: ")[1]) for piece in pieces]
    assert [piece.split("\n")[0] for piece in pieces] == [f"event: {each['type']}" for each in found]
    return found


def test_a_call_and_its_events() -> None:
    with serving(scripted("I look. " + CALL), strict=True) as url:
        response = post(url)
    assert "x-ternvl-ignored-fields" not in response.headers
    found = events(response)
    assert list(dict.fromkeys(each["type"] for each in found)) == [
        "message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta",
        "message_stop",
    ]  # fmt: skip
    assert [each["content_block"]["type"] for each in found if each["type"] == "content_block_start"] == [
        "text",
        "tool_use",
    ]
    json_deltas = [each["delta"]["partial_json"] for each in found if each.get("index") == 1 and "delta" in each]
    assert json.loads("".join(json_deltas)) == {"file_path": "/a.txt"}
    assert found[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert found[0]["message"]["usage"].keys() >= {"input_tokens", "cache_read_input_tokens", "output_tokens"}


def test_what_the_model_reads() -> None:
    llm = scripted("ok")
    with serving(llm) as url:
        events(post(url))
    assert isinstance(llm.engine, ScriptedEngine)
    prompt = b"".join(map(tiny_tokenizer().token_bytes, llm.engine.requests[-1].prompt.token_ids)).decode()
    tools = [json.loads(line) for line in prompt.split("<tools>\n")[1].split("\n</tools>")[0].split("\n")]
    assert [tool["function"]["name"] for tool in tools] == ["Read", "Edit"]
    assert tools[1]["function"]["input_examples"] == [{"old_string": "a"}]
    assert "cache_control" not in prompt
    assert "eager_input_streaming" not in prompt
    assert "You are Claude Code.\nYou are an interactive agent." in prompt


def test_the_next_turn_with_the_call_and_its_result() -> None:
    history = [
        *REQUEST["messages"],
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "abc"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "toolu_1", "name": "Read", "input": {"file_path": "/a.txt"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_1",
                    "content": [{"type": "text", "text": "1\thello"}],
                    "is_error": False,
                    "cache_control": {"type": "ephemeral", "ttl": "5m"},
                },
                {"type": "text", "text": "<system-reminder>Be careful.</system-reminder>"},
            ],
        },
    ]
    with serving(scripted("hello"), strict=True) as url:
        found = events(post(url, messages=history))
        count = post(url, "/v1/messages/count_tokens", messages=history, max_tokens=..., stream=..., metadata=...)
    assert "".join(each["delta"]["text"] for each in found if each["type"] == "content_block_delta") == "hello"
    usage = found[0]["message"]["usage"]
    assert count.json() == {"input_tokens": usage["input_tokens"] + usage["cache_read_input_tokens"]}


@pytest.mark.parametrize(
    ("fields", "ignored"),
    [
        ({"output_config": {"effort": "medium"}}, "output_config.effort"),
        ({"tools": [READ, WEB_SEARCH]}, "tools[1]"),
        ({"tools": [{**READ, "defer_loading": True}]}, "tools[0].defer_loading"),
    ],
)
def test_what_has_no_effect_is_named(fields: dict[str, Any], ignored: str) -> None:
    with serving(scripted("ok")) as url:
        for response in (
            post(url, **fields),
            post(url, "/v1/messages/count_tokens", max_tokens=..., stream=..., **fields),
        ):
            assert (response.status_code, response.headers.get("x-ternvl-ignored-fields")) == (200, ignored)
    with serving(scripted("ok"), strict=True) as url:
        response = post(url, **fields)
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(ignored)


@pytest.fixture(scope="module")
def random_url() -> Iterator[str]:
    with serving(tiny_llm(max_model_len=4096)) as url:
        yield url


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 31_999}}, "thinking"),
        ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, "context_management.edits[0].type"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type must be 'custom'"),
        ({"tools": [WEB_SEARCH], "tool_choice": {"type": "tool", "name": "web_search"}}, "tool_choice"),
        ({"tools": [READ, WEB_SEARCH], "tool_choice": {"type": "tool", "name": "web_search"}}, "tool_choice.name"),
        ({"tools": [WEB_SEARCH, {**READ, "input_schema": {"type": "strin"}}]}, "tools[1].input_schema"),
        ({"mcp_servers": [{"type": "url", "url": "https://a", "name": "a"}]}, "mcp_servers"),
        ({"model": "claude-opus-4-6"}, "The model 'claude-opus-4-6' is not served"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(random_url: str, fields: dict[str, Any], says: str) -> None:
    response = post(random_url, **fields)
    assert response.status_code == (404 if "model" in fields else 400), response.text
    assert response.json()["error"]["message"].startswith(says)
