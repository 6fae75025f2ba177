"""Valid requests of every endpoint and kind, from which malformed ones are made."""

from __future__ import annotations

import base64
import io
from functools import cache
from typing import Any

from PIL import Image

Request = tuple[str, str, Any]
"""A method, a path and a body of JSON (None without one)."""
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}, "s": {"type": "string"}}, "required": ["n"]}


def _image() -> str:
    data = io.BytesIO()
    Image.linear_gradient("L").resize((40, 30)).convert("RGB").save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


@cache
def valid_requests() -> list[Request]:
    """Return one request for each endpoint and kind."""
    url, user = _image(), {"role": "user", "content": "hi"}
    parts = [{"type": "image_url", "image_url": {"url": url, "detail": "low"}}, {"type": "text", "text": "What?"}]
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"city": "x"}'}}
    turns = [user, {"role": "assistant", "content": None, "tool_calls": [call]}]
    turns.append({"role": "tool", "tool_call_id": "c", "content": "rain"})
    source = {"type": "base64", "media_type": "image/png", "data": url.partition(",")[2]}
    seen = {"role": "user", "content": [{"type": "image", "source": source}, {"type": "text", "text": "What?"}]}
    chat, few = "/v1/chat/completions", {"max_tokens": 2}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
    chats: list[Any] = [
        {"messages": [user], "temperature": 0.5, "top_p": 0.9, "seed": 1, "stop": ["x"], "logit_bias": {"5": 1}},
        {"messages": [user], "stream": True, "stream_options": {"include_usage": True}, "n": 2},
        {"messages": [{"role": "user", "content": parts}], "mm_processor_kwargs": {"max_dynamic_patch": 1}},
        {"messages": turns, "tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False},
        {"messages": [user], "response_format": form, "logprobs": True, "top_logprobs": 2},
        {"messages": [user], "guided_regex": "[a-z]{1,3}[0-9]?", "prompt_logprobs": 1},
        {"messages": [user], "guided_choice": ["yes", "no"], "metadata": {"a": "b"}, "cache_salt": "s", "priority": 1},
    ]
    tools = [{"name": "weather", "description": "d", "input_schema": SCHEMA}]
    return [
        *(("POST", chat, {**body, **few}) for body in chats),
        ("POST", "/v1/completions", {"prompt": ["a", "b"], "echo": True, "logprobs": 1, **few}),
        ("POST", "/v1/completions", {"prompt": [1, 2, 3], "stream": True, **few}),
        ("POST", "/v1/responses", {"input": "hi", "instructions": "Be brief.", "max_output_tokens": 16}),
        ("POST", "/v1/responses", {"input": [{"role": "user", "content": "hi"}], "stream": True}),
        ("POST", "/v1/responses/input_tokens", {"input": "hi"}),
        ("POST", "/v1/messages", {"messages": [seen], "system": "Be brief.", **few}),
        ("POST", "/v1/messages", {"messages": [user], "tools": tools, "stream": True, **few}),
        ("POST", "/v1/messages/count_tokens", {"messages": [user]}),
        ("POST", "/tokenize", {"messages": [user]}),
        ("POST", "/tokenize", {"prompt": "hi", "return_token_strs": True}),
        ("POST", "/detokenize", {"tokens": [1, 2, 3]}),
        ("POST", "/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "/nowhere"}),
        ("POST", "/v1/unload_lora_adapter", {"lora_name": "x", "abort": True}),
        ("POST", "/v1/upload_lora_adapter", {"lora_name": "x"}),
        *(("GET", path, None) for path in ("/v1/models", "/v1/models/x", "/health", "/ready", "/version", "/metrics")),
        *(("GET", path, None) for path in ("/openapi.json", "/docs", "/", "/schema/chat-completions.json")),
    ]
