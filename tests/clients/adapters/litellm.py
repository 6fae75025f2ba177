"""`litellm`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from tests.clients.adapters.asking import GREEDY, LONG, MODEL, ROOM, TOOL, Call, Capital, turn

_REQUIRED: dict[str, Any] = {
    "tools": [TOOL],
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "max_tokens": ROOM,
}


class LiteLLM:
    """`litellm`."""

    def __init__(self, url: str) -> None:
        os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the internet for prices
        import litellm

        self.litellm: Any = litellm
        self.where = {"api_base": f"{url}/v1", "api_key": "none", "max_retries": 0}

    def _ask(
        self, text: str, image: str | None = None, video: str | None = None, *, model: str = MODEL, **fields: Any
    ) -> Any:
        messages = turn(text, image, video)
        return self.litellm.completion(model=f"openai/{model}", messages=messages, **self.where, **fields)

    def text(self, text: str, image: str | None = None) -> str:
        return str(self._ask(text, image, **GREEDY).choices[0].message.content)

    def video(self, text: str, url: str) -> str:
        return str(self._ask(text, video=url, **GREEDY).choices[0].message.content)

    def stream(self, text: str) -> Iterator[str]:
        for chunk in self._ask(text, stream=True, **GREEDY):
            yield chunk.choices[0].delta.content or ""

    def tools(self, text: str) -> list[Call]:
        choice = self._ask(text, **_REQUIRED).choices[0]
        assert choice.finish_reason == "tool_calls"
        functions = [call.function for call in choice.message.tool_calls]
        return [(function.name, json.loads(function.arguments)) for function in functions]

    def streamed_tools(self, text: str) -> tuple[list[Call], int]:
        chunks = list(self._ask(text, stream=True, **_REQUIRED))
        pieces = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
        whole = self.litellm.stream_chunk_builder(chunks).choices[0].message.tool_calls
        calls = [(call.function.name, json.loads(call.function.arguments)) for call in whole]
        return calls, sum(bool(piece.function.arguments) for piece in pieces)

    def schema(self, text: str) -> dict[str, Any]:
        answer = self._ask(text, response_format=Capital, max_tokens=ROOM)
        return Capital.model_validate_json(answer.choices[0].message.content).model_dump()

    def error(self) -> int:
        try:
            self._ask("hi", model="none")
        except self.litellm.exceptions.APIError as error:
            return int(error.status_code)
        except self.litellm.NotFoundError as error:
            return int(error.status_code)
        return 200

    def cancel(self) -> None:
        stream = self._ask("hi", stream=True, extra_body={"ignore_eos": True}, **LONG)
        next(iter(stream))
        stream.completion_stream.close()
