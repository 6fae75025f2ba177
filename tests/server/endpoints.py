"""A request with tools in the form of each endpoint, and what its answers hold, whole or streamed."""

from __future__ import annotations

import json
from typing import Any

import httpx

ENDPOINTS = ("chat/completions", "responses", "messages")
HI = {"role": "user", "content": "hi"}

Piece = tuple[str, str, str]
"""The kind of a part of an answer ("text", "reasoning" or "call"), the name of a call, and the text or arguments."""


def _function(tool: dict[str, Any]) -> dict[str, Any]:
    return {"parameters": {"type": "object"}, **tool["function"]}


def request_of(endpoint: str, chat: dict[str, Any]) -> dict[str, Any]:
    """A request of Chat Completions, with its tools in the form of `endpoint`.

    For Responses, a tool whose name has a space is one of a namespace, and `f` a custom tool.
    """
    shared = {name: chat[name] for name in ("temperature", "seed", "response_format") if name in chat}
    if endpoint == "chat/completions":
        return {**chat, "messages": [HI]}
    choice = chat.get("tool_choice", "auto")
    name = None if isinstance(choice, str) else choice["function"]["name"]
    parallel = chat.get("parallel_tool_calls", True)
    if endpoint == "responses":
        tools = [_response_tool(tool) for tool in chat["tools"]]
        shared["tool_choice"] = {"type": "function", "name": name} if name else choice
        shared["parallel_tool_calls"] = parallel
        return {**shared, "input": [HI], "tools": tools, "max_output_tokens": chat["max_tokens"]}
    tools = [{"name": (each := _function(tool))["name"], "input_schema": each["parameters"]} for tool in chat["tools"]]
    kinds = {"required": "any", "auto": "auto"}
    shared["tool_choice"] = {"type": "tool", "name": name} if name else {"type": kinds[choice]}
    shared["tool_choice"]["disable_parallel_tool_use"] = not parallel
    return {**shared, "messages": [HI], "tools": tools, "max_tokens": chat["max_tokens"]}


def _response_tool(tool: dict[str, Any]) -> dict[str, Any]:
    function = {"type": "function", **_function(tool)}
    if function["name"] == "f":
        return {"type": "custom", "name": "f"}
    if " " in function["name"]:
        return {"type": "namespace", "name": "some__", "description": "Some.", "tools": [function]}
    return function


def parts_of(endpoint: str, answer: dict[str, Any]) -> list[Piece]:
    """The parts of an answer that is not streamed, in their order."""
    if endpoint == "chat/completions":
        message = answer["choices"][0]["message"]
        functions = [call["function"] for call in message.get("tool_calls") or ()]
        said = [("reasoning", "", message.get("reasoning_content") or ""), ("text", "", message["content"] or "")]
        found = said + [("call", each["name"], each["arguments"]) for each in functions]
    elif endpoint == "responses":
        found = [_part_of_item(item) for item in answer["output"]]
    else:
        found = [_part_of_block(block) for block in answer["content"]]
    return [part for part in found if part[0] == "call" or part[2]]


def _part_of_item(item: dict[str, Any]) -> Piece:
    if item["type"] == "message":
        return "text", "", "".join(part["text"] for part in item["content"])
    return "call", item["name"], item.get("arguments", item.get("input"))


def _part_of_block(block: dict[str, Any]) -> Piece:
    if block["type"] == "text":
        return "text", "", block["text"]
    return "call", block["name"], json.dumps(block["input"], sort_keys=True)


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The values of a stream."""
    assert response.status_code == 200, response.text
    lines = [line.removeprefix("data: ") for line in response.text.split("\n") if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def parts_of_stream(endpoint: str, stream: list[dict[str, Any]]) -> list[Piece]:
    """The parts of a streamed answer, put together from the pieces alone, as a client does."""
    parts: dict[Any, list[str]] = {}
    for value in stream:
        for key, kind, name, text in _added(endpoint, value):
            part = parts.setdefault(key, [kind, name, ""])
            part[2] += text
    order = (
        sorted(parts) if endpoint != "chat/completions" else sorted(parts, key=lambda key: ("rtc".index(key[0]), key))
    )
    return [(kind, name, text) for kind, name, text in (parts[key] for key in order) if kind == "call" or text]


def _added(endpoint: str, value: dict[str, Any]) -> list[tuple[Any, str, str, str]]:
    """What one value of a stream adds: the key of the part, its kind, the name of a call that begins, and text."""
    if endpoint == "chat/completions":
        return [each for choice in value["choices"] for each in _added_by_chunk(choice["delta"])]
    index = value.get("output_index", value.get("index", 0))
    match value["type"]:
        case "response.output_item.added" if value["item"]["type"] != "message":
            return [(index, "call", value["item"]["name"], "")]
        case "response.output_text.delta":
            return [(index, "text", "", value["delta"])]
        case "response.function_call_arguments.delta" | "response.custom_tool_call_input.delta":
            return [(index, "call", "", value["delta"])]
        case "content_block_start":
            block = value["content_block"]
            return [(index, "text" if block["type"] == "text" else "call", block.get("name", ""), "")]
        case "content_block_delta":
            delta = value["delta"]
            return [(index, "", "", delta.get("text", delta.get("partial_json", "")))]
    return []


def _added_by_chunk(delta: dict[str, Any]) -> list[tuple[Any, str, str, str]]:
    said = [("r", "reasoning", "", delta.get("reasoning_content")), ("t", "text", "", delta.get("content"))]
    found: list[tuple[Any, str, str, str]] = [((key, 0), kind, "", text) for key, kind, _, text in said if text]
    for call in delta.get("tool_calls", ()):
        function = call["function"]
        found.append((("c", call["index"]), "call", function.get("name", ""), function["arguments"]))
    return found
