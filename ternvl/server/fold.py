"""Chunks of a stream to the answer that is not streamed."""

from __future__ import annotations

from collections.abc import AsyncIterable
from typing import Any

Chunk = dict[str, Any]


async def fold(chunks: AsyncIterable[Chunk]) -> dict[str, Any]:
    """A `chat.completion`: the concatenation of the deltas of a stream of `chat.completion.chunk`."""
    answer: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    async for chunk in chunks:
        answer |= chunk
        for piece in chunk["choices"]:
            _add(choices.setdefault(piece["index"], _choice(piece["index"])), piece)
    return answer | {"object": "chat.completion", "choices": [choices[index] for index in sorted(choices)]}


def _choice(index: int) -> dict[str, Any]:
    message = {"role": "assistant", "content": None}
    return {"index": index, "message": message, "logprobs": None, "finish_reason": None}


def _add(choice: dict[str, Any], piece: dict[str, Any]) -> None:
    message, delta = choice["message"], piece["delta"]
    if delta.get("content") is not None:
        message["content"] = (message["content"] or "") + delta["content"]
    if "reasoning_content" in delta:
        message["reasoning_content"] = message.get("reasoning_content", "") + delta["reasoning_content"]
    for call in delta.get("tool_calls", ()):
        _add_call(message.setdefault("tool_calls", []), call)
    if piece["logprobs"] is not None:
        choice["logprobs"] = choice["logprobs"] or {"content": [], "refusal": None}
        choice["logprobs"]["content"] += piece["logprobs"]["content"]
    choice["finish_reason"] = piece["finish_reason"]
    if choice["finish_reason"] and "tool_calls" in message:
        message["content"] = message["content"] or None


def _add_call(calls: list[dict[str, Any]], piece: dict[str, Any]) -> None:
    function = piece["function"]
    if piece["index"] == len(calls):
        calls.append({"id": piece["id"], "type": piece["type"], "function": dict(function)})
    else:
        calls[piece["index"]]["function"]["arguments"] += function["arguments"]
