"""The `anthropic` package."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.clients.adapters.asking import MODEL, ROOM, TOOL, Call, Capital, turn

_REQUIRED: dict[str, Any] = {
    "tools": [
        {
            "name": TOOL["function"]["name"],
            "description": TOOL["function"]["description"],
            "input_schema": TOOL["function"]["parameters"],
        }
    ],
    "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    "max_tokens": ROOM,
}
_GREEDY: dict[str, Any] = {"max_tokens": 24, "extra_body": {"temperature": 0}}


class AnthropicMessages:
    """`anthropic`, Messages."""

    def __init__(self, url: str) -> None:
        from anthropic import Anthropic

        self.client = Anthropic(base_url=url, api_key="none", max_retries=0)
        self.messages: Any = self.client.messages

    def text(self, text: str, image: str | None = None) -> str:
        content: list[Any] = [{"type": "text", "text": text}]
        if image is not None:
            data = image.partition(",")[2]
            content.append({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}})
        message = self.messages.create(model=MODEL, messages=[{"role": "user", "content": content}], **_GREEDY)
        return "".join(block.text for block in message.content if block.type == "text")

    def stream(self, text: str) -> Iterator[str]:
        with self.messages.stream(model=MODEL, messages=turn(text), **_GREEDY) as stream:
            yield from stream.text_stream

    def tools(self, text: str) -> list[Call]:
        message = self.messages.create(model=MODEL, messages=turn(text), **_REQUIRED)
        assert message.stop_reason == "tool_use"
        return [(block.name, block.input) for block in message.content]

    def streamed_tools(self, text: str) -> tuple[list[Call], int]:
        num_pieces = 0
        with self.messages.stream(model=MODEL, messages=turn(text), **_REQUIRED) as events:
            for event in events:
                num_pieces += event.type == "input_json"
            content = events.get_final_message().content
        return [(block.name, block.input) for block in content], num_pieces

    def schema(self, text: str) -> dict[str, Any]:
        message = self.messages.parse(model=MODEL, messages=turn(text), max_tokens=ROOM, output_format=Capital)
        assert isinstance(message.parsed_output, Capital)
        return message.parsed_output.model_dump()

    def error(self) -> int:
        from anthropic import APIStatusError

        try:
            self.messages.create(model="none", max_tokens=1, messages=turn("hi"))
        except APIStatusError as error:
            return error.status_code
        return 200

    def cancel(self) -> None:
        asked: Any = {"max_tokens": 4000, "extra_body": {"ignore_eos": True}}
        with self.messages.stream(model=MODEL, messages=turn("hi"), **asked) as stream:
            next(iter(stream.text_stream))
