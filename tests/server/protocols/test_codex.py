"""What OpenAI's Codex sends to `/v1/responses`, and what it reads: tools of all kinds, their calls and results."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import OpenAI

from ternvl.config import EngineConfig
from tests.fakes import tiny_tokenizer
from tests.server.calling import error_of
from tests.server.fakes import ScriptedEngine, scripted_llm, serving, tiny_llm

PATCH = '*** Begin Patch\n*** Add File: "a\\b".txt\n+é\t日\n*** End Patch\n'
GRAMMAR = 'start: begin_patch hunk+ end_patch\nbegin_patch: "*** Begin Patch" LF\n'
SHELL = {
    "type": "function",
    "name": "exec_command",
    "description": "Runs a command in a PTY.",
    "strict": False,
    "parameters": {
        "type": "object",
        "properties": {
            "cmd": {"type": "string", "description": "Shell command to execute."},
            "workdir": {"type": "string"},
            "yield_time_ms": {"type": "number"},
        },
        "required": ["cmd"],
        "additionalProperties": False,
    },
}
APPLY_PATCH = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Use the `apply_patch` tool to edit files. This is a FREEFORM tool.",
    "format": {"type": "grammar", "syntax": "lark", "definition": GRAMMAR},
}
NAMESPACE = {
    "type": "namespace",
    "name": "mcp__docs__",
    "description": "Tools in the mcp__docs__ namespace.",
    "tools": [
        {"type": "function", "name": "search", "description": "Searches.", "parameters": {"type": "object"}},
        {"type": "function", "name": "read", "description": "Reads.", "parameters": {"type": "object"}},
    ],
}  # fmt: skip
WEB_SEARCH = {"type": "web_search", "external_web_access": False, "search_content_types": ["text", "image"]}
TURNS: list[dict[str, Any]] = [
    {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "<permissions>..."}]},
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "# AGENTS.md instructions"}]},
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Add a file."}]},
]
REQUEST: dict[str, Any] = {
    "model": "tiny",
    "instructions": "You are a coding agent running in the Codex CLI.",
    "input": TURNS,
    "tools": [SHELL, APPLY_PATCH, WEB_SEARCH, NAMESPACE, {"type": "image_generation", "output_format": "png"}],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "reasoning": None,
    "store": False,
    "stream": True,
    "include": [],
    "prompt_cache_key": "0195-...",
    "client_metadata": {"x-codex-installation-id": "..."},
}
HEADERS = {
    "originator": "codex_cli_rs",
    "session_id": "0195",
    "accept": "text/event-stream",
    "authorization": "Bearer x",
}


def scripted(text: str) -> Any:
    return scripted_llm(text, config=EngineConfig(max_model_len=8192))


def called(name: str, **arguments: Any) -> str:
    text = json.dumps(arguments, ensure_ascii=False)
    return f'<tool_call>\n{{"name": "{name}", "arguments": {text}}}\n</tool_call>'


def events(url: str, **fields: Any) -> list[dict[str, Any]]:
    response = httpx.post(f"{url}/v1/responses", json={**REQUEST, **fields}, headers=HEADERS, timeout=60)
    assert response.status_code == 200, response.text
    pieces = response.text.split("\n\n")[:-1]
    found = [json.loads(piece.split("\ndata: ")[1]) for piece in pieces]
    assert [piece.split("\n")[0] for piece in pieces] == [f"event: {each['type']}" for each in found]
    assert [each["sequence_number"] for each in found] == list(range(len(found)))
    return found


def kinds(found: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(each["type"].removeprefix("response.") for each in found))


def prompt_of(llm: Any) -> str:
    assert isinstance(llm.engine, ScriptedEngine)
    return b"".join(map(tiny_tokenizer().token_bytes, llm.engine.requests[-1].prompt.token_ids)).decode()


def test_a_call_of_a_function() -> None:
    with serving(scripted("I look. " + called("exec_command", cmd="ls"))) as url:
        found = events(url)
    assert kinds(found) == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.done",
        "content_part.done", "output_item.done", "function_call_arguments.delta", "function_call_arguments.done",
        "completed",
    ]  # fmt: skip
    _, call = found[-1]["response"]["output"]
    assert (call["type"], call["name"], json.loads(call["arguments"])) == (
        "function_call",
        "exec_command",
        {"cmd": "ls"},
    )
    assert found[-1]["response"]["usage"].keys() >= {"input_tokens", "output_tokens", "total_tokens"}


def test_a_call_of_a_custom_tool_has_the_text_as_it_is() -> None:
    llm = scripted(called("apply_patch", input=PATCH))
    with serving(llm) as url, OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        found = events(url)
        whole: Any = client.responses.create(
            **{name: REQUEST[name] for name in ("model", "input", "tools", "instructions")}
        )
    assert kinds(found)[2:] == [
        "output_item.added", "custom_tool_call_input.delta", "custom_tool_call_input.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    (item,) = found[-1]["response"]["output"]
    assert item.keys() == {"id", "type", "call_id", "name", "input", "status"}
    assert (item["type"], item["name"], item["input"], item["status"]) == (
        "custom_tool_call",
        "apply_patch",
        PATCH,
        "completed",
    )
    assert "".join(each["delta"] for each in found if each["type"].endswith("input.delta")) == PATCH
    assert [each["input"] for each in found if each["type"].endswith("input.done")] == [PATCH]
    assert (whole.output[0].type, whole.output[0].name, whole.output[0].input) == (
        "custom_tool_call",
        "apply_patch",
        PATCH,
    )


def test_a_call_of_a_tool_of_a_namespace() -> None:
    with serving(scripted(called("mcp__docs__search", q="a"))) as url:
        (item,) = events(url)[-1]["response"]["output"]
    assert (item["type"], item["namespace"], item["name"]) == ("function_call", "mcp__docs__", "search")


def test_what_the_model_reads() -> None:
    """Functions as they are, custom tools with their grammar, and no tool that the server cannot run."""
    llm = scripted("ok")
    with serving(llm) as url:
        events(url)
    prompt = prompt_of(llm)
    tools = [json.loads(line) for line in prompt.split("<tools>\n")[1].split("\n</tools>")[0].split("\n")]
    functions = [tool["function"] for tool in tools]
    assert [each["name"] for each in functions] == [
        "exec_command",
        "apply_patch",
        "mcp__docs__search",
        "mcp__docs__read",
    ]
    assert functions[1]["format"]["definition"] == GRAMMAR
    assert functions[1]["parameters"]["required"] == ["input"]
    assert [tool.get("namespace") for tool in tools] == [
        None,
        None,
        {"name": "mcp__docs__", "description": "Tools in the mcp__docs__ namespace."},
        None,
    ]
    assert "web_search" not in prompt
    assert "image_generation" not in prompt


def test_what_is_left_out_or_not_enforced_is_named() -> None:
    with serving(scripted("ok")) as url:
        answer = httpx.post(f"{url}/v1/responses", json=REQUEST)
    assert answer.headers["x-ternvl-ignored-fields"] == "tools[2],tools[4]"
    assert answer.headers["x-ternvl-unenforced-schema"] == "tools[1].format"
    with serving(scripted("ok"), strict=True) as url:
        error = error_of(httpx.post(f"{url}/v1/responses", json=REQUEST))
        plain = httpx.post(f"{url}/v1/responses", json={**REQUEST, "tools": [SHELL, APPLY_PATCH, NAMESPACE]})
    assert (error["param"], error["code"]) == ("tools[2]", "unknown_field")
    assert plain.status_code == 200


def test_the_next_turn_shows_calls_and_results_as_they_were() -> None:
    llm = scripted("Done.")
    history = [
        *TURNS,
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}], "encrypted_content": "abc"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I patch."}]},
        {"type": "custom_tool_call", "call_id": "1", "name": "apply_patch", "input": PATCH, "status": "completed"},
        {"type": "custom_tool_call_output", "call_id": "1", "output": "Exit code: 0"},
        {"type": "function_call", "call_id": "2", "name": "search", "namespace": "mcp__docs__", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "found"}]},
    ]
    with serving(llm, strict=True) as url:
        answer = events(url, input=history, tools=[SHELL, APPLY_PATCH, NAMESPACE])[-1]["response"]["output"][0]
    assert answer["content"][0]["text"] == "Done."
    prompt = prompt_of(llm)
    assert "I patch.\n" + called("apply_patch", input=PATCH) in prompt
    assert called("mcp__docs__search") in prompt
    for result in ("Exit code: 0", "found"):
        assert f"<tool_response>\n{result}\n</tool_response>" in prompt


@pytest.fixture(scope="module")
def random_url() -> Iterator[str]:
    with serving(tiny_llm(max_model_len=4096)) as url:
        yield url


@pytest.mark.parametrize(
    ("choice", "kind", "name"),
    [
        ({"type": "custom", "name": "apply_patch"}, "custom_tool_call", "apply_patch"),
        ({"type": "function", "name": "search"}, "function_call", "search"),
    ],
)
@pytest.mark.parametrize("max_output_tokens", [40, 60])
def test_a_named_tool_is_called(
    random_url: str, choice: dict[str, Any], kind: str, name: str, max_output_tokens: int
) -> None:
    asked = {"tool_choice": choice, "max_output_tokens": max_output_tokens, "seed": 3, "temperature": 2}
    found = events(random_url, **asked)
    response = found[-1]["response"]
    assert found[-1]["type"] == f"response.{response['status']}"
    for item in response["output"]:
        if item["type"] == "message":  # a call that is cut before its arguments is text
            assert response["status"] == "incomplete"
        else:
            assert (item["type"], item["name"], item["status"]) == (kind, name, response["status"])
    whole = httpx.post(f"{random_url}/v1/responses", json={**REQUEST, **asked, "stream": False}, timeout=60).json()
    shown = [[item.get(each) for each in ("type", "name", "input", "arguments")] for item in response["output"]]
    assert shown == [[item.get(each) for each in ("type", "name", "input", "arguments")] for item in whole["output"]]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "local_shell"}]}, "tools[0].type"),
        ({"tools": [SHELL, {"type": "code_interpreter", "container": {"type": "auto"}}]}, "tools[1].type"),
        ({"tools": [WEB_SEARCH], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [SHELL, WEB_SEARCH], "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"tool_choice": {"type": "function", "name": "web_search"}}, "tool_choice.name"),
        ({"tools": [APPLY_PATCH, {**SHELL, "name": "apply_patch"}]}, "tools[0].name"),
        ({"tools": [WEB_SEARCH, {**SHELL, "parameters": {"type": "strin"}}]}, "tools[1].parameters"),
        ({"tools": [{**NAMESPACE, "tools": [{**SHELL, "parameters": {"type": "strin"}}]}]},
         "tools[0].tools[0].parameters"),
        ({"tools": [{**APPLY_PATCH, "format": {"type": "grammar", "syntax": "gbnf", "definition": ""}}]},
         "tools[0].format.syntax"),
        ({"reasoning": {"effort": "medium", "summary": "auto"}}, "reasoning"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": [{"type": "web_search_call", "status": "completed"}]}, "input[0].type"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused_by_name(random_url: str, fields: dict[str, Any], param: str) -> None:
    response = httpx.post(f"{random_url}/v1/responses", json={**REQUEST, **fields})
    assert response.status_code == 400, response.text
    assert error_of(response)["param"] == param
