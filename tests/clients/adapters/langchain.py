"""`langchain-openai`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.clients.adapters.asking import GREEDY, LONG, MODEL, ROOM, TOOL, Call, Capital, turn


class LangChain:
    """LangChain's `ChatOpenAI`."""

    def __init__(self, url: str) -> None:
        from langchain_openai import ChatOpenAI

        kind: Any = ChatOpenAI
        self.make = lambda **fields: kind(base_url=f"{url}/v1", api_key="none", max_retries=0, **fields)

    def _model(self, **fields: Any) -> Any:
        return self.make(model=MODEL, **{**GREEDY, **fields})

    def _calling(self) -> Any:
        return self._model(max_tokens=ROOM).bind_tools([TOOL], tool_choice="any", parallel_tool_calls=False)

    def text(self, text: str, image: str | None = None) -> str:
        return str(self._model().invoke(turn(text, image)).content)

    def video(self, text: str, url: str) -> str:
        return str(self._model().invoke(turn(text, video=url)).content)

    def stream(self, text: str) -> Iterator[str]:
        for chunk in self._model().stream(turn(text)):
            yield chunk.content

    def tools(self, text: str) -> list[Call]:
        message = self._calling().invoke(turn(text))
        assert not message.invalid_tool_calls
        return [(call["name"], call["args"]) for call in message.tool_calls]

    def streamed_tools(self, text: str) -> tuple[list[Call], int]:
        chunks = list(self._calling().stream(turn(text)))
        whole, *rest = chunks
        for chunk in rest:
            whole += chunk
        num_pieces = sum(bool(call["args"]) for chunk in chunks for call in chunk.tool_call_chunks)
        return [(call["name"], call["args"]) for call in whole.tool_calls], num_pieces

    def schema(self, text: str) -> dict[str, Any]:
        model = self._model(max_tokens=ROOM).with_structured_output(Capital, method="json_schema")
        answer = model.invoke(turn(text))
        assert isinstance(answer, Capital)
        return answer.model_dump()

    def error(self) -> int:
        from openai import APIStatusError

        try:
            self.make(model="none").invoke("hi")
        except APIStatusError as error:
            return error.status_code
        return 200

    def cancel(self) -> None:
        stream = self._model(extra_body={"ignore_eos": True}, **LONG).stream("hi")
        next(stream)
        stream.close()
