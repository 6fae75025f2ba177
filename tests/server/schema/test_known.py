"""No documented field of any protocol is accepted and then ignored, and each default of each protocol is accepted."""

from __future__ import annotations

import typing
from typing import Any

import httpx
import pytest
from openai.types import chat

from ternvl.server.operations import OPERATIONS
from tests.server.schema import documented

USER = {"role": "user", "content": "hi"}
CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [USER], "max_tokens": 1},
    COMPLETIONS: {"prompt": "hi", "max_tokens": 1},
    RESPONSES: {"input": "hi", "max_output_tokens": 1},
    MESSAGES: {"messages": [USER], "max_tokens": 1},
    "/v1/messages/count_tokens": {"messages": [USER]},
    "/v1/responses/input_tokens": {"input": "hi"},
    "/tokenize": {"messages": [USER]},
}
TEXT = (CHAT, COMPLETIONS, RESPONSES, MESSAGES)
FIELDS = {
    **dict.fromkeys(TEXT, documented.TEXT),
    "/v1/messages/count_tokens": documented.COUNT_TOKENS,
    "/v1/responses/input_tokens": documented.INPUT_TOKENS,
    "/tokenize": documented.VLLM_TOKENIZE,
}
LABELS = {
    "cache_control", "prompt_cache_key", "safety_identifier", "session_id", "user", "user_profile_id", "workspace_id",
}  # fmt: skip
JUNK: tuple[Any, ...] = ({"nobody": "knows"}, "something else", 12345.5, True)


def post(http: httpx.Client, path: str, body: dict[str, Any]) -> httpx.Response:
    response = http.post(path, json=body)
    assert response.status_code < 500, (path, body, response.text)
    return response


@pytest.mark.parametrize("path", BODIES)
def test_a_documented_field_is_held_to_or_refused(http: httpx.Client, path: str) -> None:
    for name in sorted(FIELDS[path] - LABELS):
        answers = [post(http, path, {**BODIES[path], name: value}) for value in JUNK]
        assert any(answer.status_code in (400, 404) for answer in answers), (path, name)
        ignored = [answer.headers.get("x-ternvl-ignored-fields", "") for answer in answers]
        assert name not in ",".join(ignored).split(","), (path, name)


SAMPLING = {
    "temperature": 1, "top_p": 1, "top_k": 0, "min_p": 0.0, "presence_penalty": 0, "frequency_penalty": 0,
    "repetition_penalty": 1.0, "seed": None, "stop": None, "logit_bias": None, "min_tokens": 0, "ignore_eos": False,
    "skip_special_tokens": True, "include_stop_str_in_output": False, "allowed_token_ids": None, "stream": False,
}  # fmt: skip
VLLM = {
    "use_beam_search": False, "length_penalty": 1.0, "truncate_prompt_tokens": None, "prompt_logprobs": None,
    "bad_words": [], "echo": False, "add_special_tokens": False, "documents": None, "chat_template": None,
    "chat_template_kwargs": None, "mm_processor_kwargs": None, "media_io_kwargs": None, "structured_outputs": None,
    "priority": 0, "return_tokens_as_token_ids": None, "return_token_ids": None, "cache_salt": None,
    "kv_transfer_params": None, "vllm_xargs": None, "include_reasoning": True, "return_token_offsets": False,
    "routed_experts_prompt_start": 0, "return_mm_kwargs": True, "thinking_token_budget": None, "stream_interval": None,
    "add_generation_prompt": True, "continue_final_message": False, "watermarking": None, "repetition_detection": None,
    "enable_response_messages": False, "previous_input_messages": None, "guided_json": None,
}  # fmt: skip
OPENAI = {
    "n": 1, "store": False, "service_tier": "auto", "modalities": ["text"], "audio": None, "prediction": None,
    "verbosity": "medium", "reasoning_effort": "none", "functions": [], "function_call": "none", "tools": [],
    "tool_choice": "auto", "parallel_tool_calls": True, "response_format": {"type": "text"}, "moderation": None,
    "web_search_options": None, "prompt_cache_retention": "in_memory", "prompt_cache_options": {"mode": "implicit"},
    "user": "me", "safety_identifier": "me", "prompt_cache_key": "me", "stream_options": None, "top_logprobs": 0,
}  # fmt: skip
DEFAULTS: dict[str, dict[str, Any]] = {
    CHAT: {**SAMPLING, **OPENAI, **VLLM, "logprobs": False, "metadata": {}, "max_completion_tokens": None},
    COMPLETIONS: {**SAMPLING, **OPENAI, **VLLM, "logprobs": None, "best_of": 1, "suffix": None},
    # OpenAI stores responses by default; this server keeps none, and says so rather than accepting `store: true`.
    RESPONSES: {
        **SAMPLING, **OPENAI, **VLLM, "background": False, "include": [], "conversation": None, "max_tool_calls": None,
        "previous_response_id": None, "reasoning": {"effort": None, "summary": None}, "truncation": "disabled",
        "text": {"format": {"type": "text"}, "verbosity": "medium"}, "instructions": None, "context_management": [],
        "background_options": None, "access_programs": None, "metadata": {}, "prompt": None,
    },
    MESSAGES: {
        **SAMPLING, **VLLM, "stop_sequences": [], "system": "", "thinking": {"type": "disabled"}, "betas": [],
        "tools": [], "tool_choice": {"type": "auto"}, "service_tier": "auto", "metadata": {"user_id": "me"},
        "container": None, "context_management": {"edits": []}, "mcp_servers": [], "speed": "standard",
        "output_config": {"effort": None, "format": None}, "output_format": None, "inference_geo": None,
        "cache_control": {"type": "ephemeral"}, "diagnostics": {"previous_message_id": None}, "fallbacks": None,
        "compaction": None, "billing_policy": None, "thread": None, "workspace_id": "w", "user_profile_id": "u",
    },
}  # fmt: skip


@pytest.mark.parametrize("path", TEXT)
def test_each_default_is_accepted_alone_and_all_are_together(http: httpx.Client, path: str) -> None:
    for body in (*({name: value} for name, value in DEFAULTS[path].items()), DEFAULTS[path]):
        response = post(http, path, {**BODIES[path], **body})
        assert response.status_code == 200, (body, response.text)
        assert "x-ternvl-ignored-fields" not in response.headers, (body, response.headers)


ASKS_FOR_NOTHING: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"top_logprobs": 0}),
    (CHAT, {"logprobs": False, "top_logprobs": 0}),
    (CHAT, {"spaces_between_special_tokens": False}),
    (CHAT, {"spaces_between_special_tokens": True}),
    (CHAT, {"chat_template_kwargs": {"enable_thinking": False}}),
    (CHAT, {"function_call": "auto"}),
    (CHAT, {"tool_choice": "none"}),
    (CHAT, {"stream_options": {"include_usage": True, "continuous_usage_stats": True}, "stream": True}),
    (COMPLETIONS, {"suffix": "", "tools": [], "tool_choice": "none"}),
    (RESPONSES, {"include": ["reasoning.encrypted_content"]}),
    (RESPONSES, {"reasoning": {"effort": "none", "summary": "auto"}}),
    (RESPONSES, {"reasoning": {}}),
    (RESPONSES, {"stream_options": {"include_obfuscation": False}, "stream": True}),
    (MESSAGES, {"thinking": {"type": "adaptive"}}),
    (MESSAGES, {"thinking": {"type": "adaptive", "display": "omitted"}}),
    (MESSAGES, {"context_management": {}}),
    (MESSAGES, {"service_tier": "standard_only"}),
]


@pytest.mark.parametrize(("path", "fields"), ASKS_FOR_NOTHING)
def test_a_value_that_asks_for_what_happens_anyway_is_accepted(
    http: httpx.Client, path: str, fields: dict[str, Any]
) -> None:
    response = post(http, path, {**BODIES[path], **fields})
    assert response.status_code == 200, response.text
    assert "x-ternvl-ignored-fields" not in response.headers


@pytest.mark.parametrize("path", [*BODIES, "/detokenize", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"])
def test_no_invalid_value_is_a_failure_of_the_server(http: httpx.Client, path: str) -> None:
    body = BODIES.get(path, {"tokens": [1], "lora_name": "a", "lora_path": "b"})
    values = (
        *JUNK,
        [],
        {},
        "",
        -1,
        2**70,
        [[]],
        [{}],
        [None],
        {"type": "text"},
        [{"type": "text"}],
        [{"role": "user"}],
    )
    schema = next(each.request for each in OPERATIONS if each.path == path)
    assert schema is not None
    for name in sorted(schema.model_fields):
        for value in values:
            post(http, path, {**body, name: value, **({"stream": False} if name != "stream" else {})})


CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"prompt": "a", "messages": [USER]}, "prompt"),
    ({"messages": [USER], "continue_final_message": True}, "continue_final_message"),
    ({"messages": [USER], "continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].tool_call_id"),
]


@pytest.mark.parametrize(("body", "param"), CONTRADICTIONS)
def test_contradictory_conversations_to_tokenize_are_refused(
    http: httpx.Client, body: dict[str, Any], param: str
) -> None:
    response = http.post("/tokenize", json=body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


def fields_of(kind: Any) -> dict[str, Any]:
    """The keys of a client library's type of messages and of their parts, with their types."""
    return typing.get_type_hints(kind)


@pytest.mark.parametrize("kind", typing.get_args(chat.ChatCompletionMessageParam))
def test_a_documented_field_of_a_message_is_held_to_or_refused(http: httpx.Client, kind: Any) -> None:
    role = typing.get_args(fields_of(kind)["role"])[0]
    message = (
        {"role": role, "content": "hi", "tool_call_id": "1"} if role == "tool" else {"role": role, "content": "hi"}
    )
    for name in sorted(fields_of(kind).keys() - {"role", "content", "tool_call_id"}):
        answers = [post(http, CHAT, {"messages": [message | {name: value}], "max_tokens": 1}) for value in JUNK]
        assert any(answer.status_code == 400 for answer in answers), name
        ignored = [answer.headers.get("x-ternvl-ignored-fields", "") for answer in answers]
        assert not any(f".{name}" in each for each in ignored), (name, ignored)


def test_a_name_does_not_change_the_prompt(http: httpx.Client) -> None:
    named = [{**USER, "name": "bob"}]
    answers = [post(http, "/tokenize", {"messages": messages}).json() for messages in ([USER], named)]
    assert answers[0]["tokens"] == answers[1]["tokens"]
