"""The request schema: what is accepted, and what is refused naming the field."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ternvl.errors import RequestError
from ternvl.server.protocols.chat_schema import ChatRequest
from ternvl.server.schema.fields import parse
from tests.server.page import page_schema


def parse_chat(body: Any, *, strict: bool = False) -> tuple[ChatRequest, list[str]]:
    return parse(ChatRequest, body, protocol="chat", strict=strict)


USER = {"role": "user", "content": "hi"}
PNG = "data:image/png;base64,iVBORw0KGgo="
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}


def image(url: Any, **extra: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **extra}}


def text(value: Any) -> dict[str, Any]:
    return {"type": "text", "text": value}


def with_content(*parts: Any, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": list(parts)}]}


ACCEPTED = [
    {"length_penalty": 1.0, "priority": 0.0},
    {"temperature": 0, "top_p": 0, "n": 1},
    {"temperature": 2, "top_p": 1.0, "n": 128},
    {"max_tokens": 1.0},
    {"presence_penalty": -2, "frequency_penalty": 2.0},
    {"temperature": None, "n": None, "stop": None, "tools": None, "stream_options": None, "tool_choice": None},
    {"stream": True, "stream_options": {"include_usage": True}},
    {"stop": "a"},
    {"stop": ["a"] * 16},
    {"logprobs": True, "top_logprobs": 20},
    {"top_k": -1, "min_p": 0.5, "repetition_penalty": 1.5, "min_tokens": 3, "ignore_eos": True, "stop_token_ids": [1]},
    {"tools": [], "tool_choice": "auto"},
    {"tools": [TOOL], "tool_choice": "none", "parallel_tool_calls": True},
    {"tools": [{"type": "function", "function": {"name": "f", "strict": False}}]},
    {"tools": [{"type": "function", "function": {"name": "f", "strict": True}}], "parallel_tool_calls": False},
    {"tools": [TOOL], "tool_choice": "required"},
    {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "look"}}},
    {"response_format": {"type": "json_object"}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}, "strict": True}}},
    *[{"structured_outputs": form} for form in ({"regex": ""}, {"json": {}}, {"json": "{}"}, {"json_object": True})],
    *[
        {"structured_outputs": form}
        for form in ({"choice": ["a"]}, {"grammar": "start: A"}, {"regex": "a", "json": None})
    ],
    *[{"guided_json": {}}, {"guided_regex": "a"}, {"guided_choice": ["a"]}, {"guided_grammar": "start: A"}],
    {"user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "default", "modalities": ["text"]},
    {"mm_processor_kwargs": {"max_dynamic_patch": 4}, "response_format": {"type": "text"}, "logit_bias": {}},
    {"skip_special_tokens": True, "include_stop_str_in_output": False, "priority": 0, "model": "any"},
    {"seed": -(2**63)},
    {"logit_bias": {"5": -100, "0": 100.0}, "allowed_token_ids": [0, 5]},
    {"skip_special_tokens": False, "include_stop_str_in_output": True, "priority": -3},
    {"add_generation_prompt": False, "continue_final_message": False},
    {"messages": [USER, {"role": "assistant", "content": "so"}], "continue_final_message": True},
    {"stream": True, "stream_options": {"include_obfuscation": False, "continuous_usage_stats": False}},
    {"min_tokens": 4, "max_tokens": 4},
    with_content(),
    with_content(text("a"), image(PNG), image("https://example.com/a.jpg", detail="low")),
    with_content(text("a"), role="system"),
    with_content(text("a"), role="assistant"),
    {"messages": [USER, {"role": "assistant", "tool_calls": [CALL]}]},
    {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}]},
    {"messages": [USER, {"role": "assistant", "content": "so", "tool_calls": None, "refusal": None}]},
    {"messages": [{"role": "tool", "content": [text("4")], "tool_call_id": "c1"}]},
    {"messages": [{"role": "tool", "content": [text("4"), image(PNG)], "tool_call_id": "c1"}]},
    {"messages": [{"role": "tool", "content": None, "tool_call_id": "c1"}]},
    {"messages": [{"role": "developer", "content": "a"}, USER]},
    *[{"messages": [USER, {"role": "assistant", "content": content, "tool_calls": calls}]}
      for content in (None, "", "a", [], [text("a"), {"type": "refusal", "refusal": "no"}]) for calls in (None, [])],
    {"messages": [USER, {"role": "assistant", "refusal": "no"}]},
    {"messages": [USER, {"role": "assistant", "content": "a", "reasoning_content": "b", "reasoning": "c"}]},
    *[{"messages": [{"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "look", "arguments": cut}}]}]}
      for cut in ("", "{", '{"a": [1, "', "no JSON", "[" * 10**4, "1" * 4500)],
    *[with_content(image(url)) for url in ("https://a/b c[]|{}.png?ä#é", " https://bücher.example/ö.png\n", "https://a/%zz",
                                           "data:image/png;base64, AAAA\r\nAAAA\n", "file:///a b.png")],
    with_content(image(PNG, min_dynamic_patch=2, max_dynamic_patch=6)),
    {"image_placement": "in_place"},
]  # fmt: skip

REFUSED = [
    ({"messages": None}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": ["hi"]}, "messages[0].role"),
    ({"messages": [{"content": "hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "owner", "content": "hi"}]}, "messages[0].role"),
    ({"messages": [{"role": ["user"], "content": "hi"}]}, "messages[0].role"),
    ({"messages": [USER, {"role": "user"}]}, "messages[1].content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
    ({"messages": [{"role": "assistant"}]}, "messages[0].content"),
    ({"messages": [{"role": "assistant", "tool_calls": []}]}, "messages[0].content"),
    (
        {"messages": [{"role": "assistant", "content": "a", "function_call": CALL["function"]}]},
        "messages[0].function_call",
    ),
    ({"messages": [{"role": "tool", "tool_call_id": "c1"}]}, "messages[0].content"),
    ({"messages": [{"role": "developer", "content": [image(PNG)]}]}, "messages[0].content[0].type"),
    (with_content({"type": "refusal", "refusal": "no"}), "messages[0].content[0].type"),
    (with_content({"type": "video_url", "video_url": {"url": "b.mp4"}}), "messages[0].content[0].video_url.url"),
    (with_content({"type": "video_url"}), "messages[0].content[0].video_url"),
    (
        with_content({"type": "video_url", "video_url": {"url": PNG, "num_frames": 0}}),
        "messages[0].content[0].video_url.num_frames",
    ),
    (with_content({"type": "video_url", "video_url": {"url": PNG}, "fps": 0}), "messages[0].content[0].fps"),
    (with_content({"type": "video", "video": {"url": PNG}}), "messages[0].content[0].video"),
    (with_content({"type": "video", "video": []}), "messages[0].content[0].video"),
    (with_content({"type": "video", "video": ["a.png"]}), "messages[0].content[0].video[0]"),
    (with_content({"type": "input_video", "input_video": {"data": ""}}), "messages[0].content[0].input_video.data"),
    ({"media_io_kwargs": {"image": {"rgba_background_color": [0, 0, 0]}}}, "media_io_kwargs.image"),
    ({"media_io_kwargs": {"video": {"num_frames": -1}}}, "media_io_kwargs.video.num_frames"),
    ({"media_io_kwargs": {"video": {"fps": -0.5}}}, "media_io_kwargs.video.fps"),
    ({"media_io_kwargs": {"video": {"video_backend": "opencv"}}}, "media_io_kwargs.video.video_backend"),
    (with_content(image(PNG, max_dynamic_patch=0)), "messages[0].content[0].image_url.max_dynamic_patch"),
    (
        with_content(image(PNG, max_dynamic_patch=2, min_dynamic_patch=3)),
        "messages[0].content[0].image_url.min_dynamic_patch",
    ),
    ({"image_placement": "last"}, "image_placement"),
    ({"messages": [{"role": "tool", "content": "4"}]}, "messages[0].tool_call_id"),
    ({"messages": [{"role": "assistant", "tool_calls": [{**CALL, "id": 1}]}]}, "messages[0].tool_calls[0].id"),
    ({"messages": [{"role": "assistant", "tool_calls": [{**CALL, "type": "x"}]}]}, "messages[0].tool_calls[0].type"),
    (with_content({"type": "video"}), "messages[0].content[0].video"),
    (with_content({"type": "audio"}), "messages[0].content[0].type"),
    (with_content({"text": "a"}), "messages[0].content[0].type"),
    (with_content(text("a"), text(1)), "messages[0].content[1].text"),
    (with_content({"type": "image_url"}), "messages[0].content[0].image_url"),
    (with_content({"type": "image_url", "image_url": PNG}), "messages[0].content[0].image_url"),
    (with_content({"type": "image_url", "image_url": {}}), "messages[0].content[0].image_url.url"),
    (with_content(image(1)), "messages[0].content[0].image_url.url"),
    (with_content(image("photo.jpg")), "messages[0].content[0].image_url.url"),
    (with_content(image("https://a b")), "messages[0].content[0].image_url.url"),
    (with_content(image("https://a:b/")), "messages[0].content[0].image_url.url"),
    (with_content(image("https://a\\b/")), "messages[0].content[0].image_url.url"),
    (with_content(image(PNG, detail="medium")), "messages[0].content[0].image_url.detail"),
    (with_content(image(PNG), role="system"), "messages[0].content[0].type"),
    (with_content(image(PNG), role="assistant"), "messages[0].content[0].type"),
    *[({"temperature": value}, "temperature") for value in (-0.1, 2.01, "1", True, [], 1e400, 10**400)],
    *[({"top_p": value}, "top_p") for value in (-0.1, 1.1, "1", False)],
    *[({"n": value}, "n") for value in (0, -1, 1.5, "1", True, 129)],
    *[({"stream": value}, "stream") for value in ("true", 1, 0)],
    *[({"max_tokens": value}, "max_tokens") for value in (0, -5, 1.5, "7", True)],
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    *[({"presence_penalty": value}, "presence_penalty") for value in (-2.1, 2.1, "0")],
    *[({"frequency_penalty": value}, "frequency_penalty") for value in (-2.1, 2.1, True)],
    ({"tools": {}}, "tools"),
    ({"tools": [{"function": {"name": "f"}}]}, "tools[0].type"),
    ({"tools": [{"type": "web", "function": {"name": "f"}}]}, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}, "tools[0].function.parameters"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a", ""]}, "stop[1]"),
    ({"stop": 7}, "stop"),
    ({"seed": 2**63}, "seed"),
    ({"seed": "1"}, "seed"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"min_tokens": 5, "max_tokens": 9, "max_completion_tokens": 4}, "min_tokens"),
    ({"min_p": 1.1}, "min_p"),
    ({"top_k": -2}, "top_k"),
    *[({"repetition_penalty": value}, "repetition_penalty") for value in (0, 1e-300, 2.1)],
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
    *[({"logit_bias": {key: 1}}, f"logit_bias.{key}") for key in ("a", "-1", "05", "1.0", "９", "9" * 99)],
    *[({"logit_bias": {"5": value}}, "logit_bias.5") for value in (100.5, -101, "1", True)],
    ({"logit_bias": []}, "logit_bias"),
    ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
    ({"allowed_token_ids": []}, "allowed_token_ids"),
    ({"allowed_token_ids": [-1]}, "allowed_token_ids[0]"),
    ({"skip_special_tokens": 1}, "skip_special_tokens"),
    ({"include_stop_str_in_output": "yes"}, "include_stop_str_in_output"),
    ({"priority": 1.5}, "priority"),
    ({"priority": 2**31}, "priority"),
    ({"priority": False}, "priority"),
    ({"continue_final_message": True}, "continue_final_message"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [CALL]}], "continue_final_message": True},
        "continue_final_message",
    ),
    (
        {
            "messages": [{"role": "assistant", "content": "a"}],
            "continue_final_message": True,
            "add_generation_prompt": True,
        },
        "continue_final_message",
    ),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
    ({"metadata": {"a": 1}}, "metadata.a"),
    ({"metadata": {str(i): "a" for i in range(17)}}, "metadata"),
    ({"model": 5}, "model"),
    ({"cache_salt": ""}, "cache_salt"),
    ({"tool_choice": "any"}, "tool_choice"),
    ({"tool_choice": 3}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {}}}, "tool_choice.function.name"),
    ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.type"),
    ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
    ({"response_format": "json_object"}, "response_format.type"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, "response_format.json_schema.name"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, "response_format.json_schema.schema"),
    ({"messages": []}, "messages"),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "a", "json": {}}}, "structured_outputs"),
    ({"structured_outputs": {"regex": 1}}, "structured_outputs.regex"),
    ({"structured_outputs": {"json": [1]}}, "structured_outputs.json"),
    ({"structured_outputs": {"regex": "a", "whitespace_pattern": " "}}, "structured_outputs.whitespace_pattern"),
    ({"guided_choice": []}, "guided_choice"),
    ({"guided_choice": ["a", ""]}, "guided_choice[1]"),
    ({"cache_salt": 1}, "cache_salt"),
    ({"mm_processor_kwargs": {"max_dynamic_patch": 0}}, "mm_processor_kwargs.max_dynamic_patch"),
]


@pytest.mark.parametrize("fields", ACCEPTED, ids=json.dumps)
def test_accepts(fields: dict[str, Any]) -> None:
    _, ignored = parse_chat({"messages": [USER], **fields}, strict=True)
    assert ignored == []


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=[f"{param}-{i}" for i, (_, param) in enumerate(REFUSED)])
def test_refuses_and_names_the_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as refusal:
        parse_chat({"messages": [USER], **fields})
    assert refusal.value.param == param
    assert str(refusal.value).startswith(param)
    assert "\n" not in str(refusal.value)
    assert not re.search("dictionary|instance|validation|a valid|None|True", str(refusal.value)), "words of Python"


@pytest.mark.parametrize("field", ["messages", "tools", "stop_token_ids"])
def test_a_long_list_is_left_at_its_first_error(field: str) -> None:
    with pytest.raises(ValidationError) as found:
        ChatRequest.model_validate({"messages": [USER], field: ["x"] * 100})
    assert found.value.error_count() == 1


ROLES = "'system', 'developer', 'user', 'assistant', 'tool'"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({}, "messages[0].role is required and must be one of"),
        ({"role": "owner"}, f"messages[0].role must be one of {ROLES}, not 'owner'."),
        ({"role": "{x}"}, f"messages[0].role must be one of {ROLES}, not '{{x}}'."),
        ({"role": 3}, "messages[0].role must be one of"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text is required"),
        ({"role": "user", "content": [{"type": "file"}]}, "messages[0].content[0].type must be one of 'text', "),
    ],
)  # fmt: skip
def test_an_unknown_kind_is_told_from_a_missing_one(value: Any, says: str) -> None:
    with pytest.raises(RequestError) as refusal:
        parse_chat({"messages": [value]})
    assert str(refusal.value).startswith(says)


def test_missing_messages() -> None:
    with pytest.raises(RequestError) as refusal:
        parse_chat({})
    assert (refusal.value.param, str(refusal.value)) == ("messages", "messages is required.")


@cache
def page_validator() -> Any:
    """Of the page's schema, its undefined part made to accept what it must."""
    value = page_schema()
    value["components"]["schemas"]["ToolDefinition"] = {"type": "object"}
    checker = jsonschema.FormatChecker(())
    checker.checks("uri")(lambda value: not isinstance(value, str) or value == PNG)
    return jsonschema.Draft7Validator(value, format_checker=checker)


_scalars = st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.floats(-3, 3), st.sampled_from(["", "user", "x"]))
_part = st.one_of(
    _scalars,
    st.fixed_dictionaries({}, optional={"type": st.sampled_from(["text", "image_url", 1]), "text": _scalars}),
    st.fixed_dictionaries(
        {"type": st.just("image_url")},
        optional={"image_url": st.fixed_dictionaries({}, optional={"url": st.sampled_from([PNG, "no uri", 4])})},
    ),
)
_message = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["system", "user", "assistant", "owner", 3]),
        "content": st.one_of(_scalars, st.lists(_part, max_size=3)),
    },
)
_numbers = st.one_of(_scalars.filter(lambda value: value is not None), st.floats(-10, 10), st.integers(-10, 10))
_request = st.fixed_dictionaries(
    {"messages": st.lists(_message, min_size=1, max_size=3)},
    optional=dict.fromkeys(
        ["temperature", "top_p", "n", "stream", "max_tokens", "presence_penalty", "frequency_penalty"], _numbers
    ),
)


def is_null_answer(message: Any) -> bool:
    """Clients send back answers with `content: null`, which is accepted beyond the page."""
    return message.get("role") == "assistant" and "content" in message and message["content"] is None


@settings(max_examples=150, deadline=None)
@given(body=_request.filter(lambda body: not any(map(is_null_answer, body["messages"]))))
def test_agrees_with_the_page_on_any_request(body: dict[str, Any]) -> None:
    page_says = page_validator().is_valid(body)
    try:
        parse_chat(body)
    except RequestError:
        we_say = False
    else:
        we_say = True
    assert we_say == page_says
