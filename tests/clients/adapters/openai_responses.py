"""The `openai` package: Responses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.clients.adapters.asking import MODEL, ROOM, TOOL, Call, Capital

_TOOL = {"type": "function", "strict": True, **TOOL["function"]}
_REQUIRED: dict[str, Any] = {"tool_choice": "required", "parallel_tool_calls": False, "max_output_tokens": ROOM}
_GREEDY: dict[str, Any] = {"max_output_tokens": 24, "temperature": 0}


class OpenAIResponses:
    """`openai`, Responses."""

    def __init__(self, url: str) -> None:
        from openai import OpenAI

        self.client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        self.responses: Any = self.client.responses

    def text(self, text: str, image: str | None = None) -> str:
        parts: list[Any] = [{"type": "input_text", "text": text}]
        if image is not None:
            parts.append({"type": "input_image", "image_url": image})
        return str(
            self.responses.create(model=MODEL, input=[{"role": "user", "content": parts}], **_GREEDY).output_text
        )

    def stream(self, text: str) -> Iterator[str]:
        with self.responses.stream(model=MODEL, input=text, **_GREEDY) as events:
            for event in events:
                if event.type == "response.output_text.delta":
                    yield event.delta

    def tools(self, text: str) -> list[Call]:
        response = self.responses.create(model=MODEL, input=text, tools=[_TOOL], **_REQUIRED)
        assert response.status == "completed"
        return [(item.name, json.loads(item.arguments)) for item in response.output if item.type == "function_call"]

    def streamed_tools(self, text: str) -> tuple[list[Call], int]:
        num_pieces = 0
        with self.responses.stream(model=MODEL, input=text, tools=[_TOOL], **_REQUIRED) as events:
            for event in events:
                num_pieces += event.type == "response.function_call_arguments.delta"
            output = events.get_final_response().output
        return [(item.name, item.parsed_arguments) for item in output if item.type == "function_call"], num_pieces

    def schema(self, text: str) -> dict[str, Any]:
        parsed = self.responses.parse(
            model=MODEL, input=text, text_format=Capital, max_output_tokens=ROOM
        ).output_parsed
        assert isinstance(parsed, Capital)
        return parsed.model_dump()

    def error(self) -> int:
        from openai import APIStatusError

        try:
            self.responses.create(model="none", input="hi")
        except APIStatusError as error:
            return error.status_code
        return 200

    def cancel(self) -> None:
        asked: Any = {"max_output_tokens": 4000, "extra_body": {"ignore_eos": True}}
        with self.responses.create(model=MODEL, input="hi", stream=True, **asked) as events:
            next(iter(events))
