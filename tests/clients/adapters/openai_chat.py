"""The `openai` package: Chat Completions, and its helpers for pydantic models."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

from tests.clients.adapters.asking import GREEDY, LONG, MODEL, ROOM, TOOL, Call, Capital, Weather, turn

T = TypeVar("T")
REQUIRED: dict[str, Any] = {"tool_choice": "required", "parallel_tool_calls": False, "max_tokens": ROOM}


class OpenAIChat:
    """`openai`, Chat Completions."""

    def __init__(self, url: str) -> None:
        from openai import OpenAI

        self.client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        self.chat: Any = self.client.chat.completions

    def text(self, text: str, image: str | None = None) -> str:
        answer = self.chat.create(model=MODEL, messages=turn(text, image), **GREEDY)
        return str(answer.choices[0].message.content)

    def video(self, text: str, url: str) -> str:
        answer = self.chat.create(model=MODEL, messages=turn(text, video=url), **GREEDY)
        return str(answer.choices[0].message.content)

    def stream(self, text: str) -> Iterator[str]:
        with self.chat.create(model=MODEL, messages=turn(text), stream=True, **GREEDY) as chunks:
            for chunk in chunks:
                yield chunk.choices[0].delta.content or ""

    def tools(self, text: str) -> list[Call]:
        from openai import pydantic_function_tool

        tool = pydantic_function_tool(Weather, name="get_weather")
        choice = self.chat.parse(model=MODEL, messages=turn(text), tools=[tool], **REQUIRED).choices[0]
        assert choice.finish_reason == "tool_calls"
        functions = [call.function for call in choice.message.tool_calls]
        assert all(isinstance(function.parsed_arguments, Weather) for function in functions)
        return [(function.name, function.parsed_arguments.model_dump()) for function in functions]

    def streamed_tools(self, text: str) -> tuple[list[Call], int]:
        from openai import pydantic_function_tool

        tool, num_pieces = pydantic_function_tool(Weather, name="get_weather"), 0
        with self.chat.stream(model=MODEL, messages=turn(text), tools=[tool], **REQUIRED) as events:
            for event in events:
                num_pieces += event.type == "tool_calls.function.arguments.delta"
            message = events.get_final_completion().choices[0].message
        return [
            (call.function.name, call.function.parsed_arguments.model_dump()) for call in message.tool_calls
        ], num_pieces

    def schema(self, text: str) -> dict[str, Any]:
        answer = self.chat.parse(model=MODEL, messages=turn(text), response_format=Capital, max_tokens=ROOM)
        assert isinstance(answer.choices[0].message.parsed, Capital)
        return answer.choices[0].message.parsed.model_dump()

    def error(self) -> int:
        from openai import APIStatusError

        try:
            self.chat.create(model="none", messages=turn("hi"))
        except APIStatusError as error:
            return error.status_code
        return 200

    def cancel(self) -> None:
        asked: Any = {**LONG, "extra_body": {"ignore_eos": True}}
        with self.chat.create(model=MODEL, messages=turn("hi"), stream=True, **asked) as chunks:
            next(iter(chunks))


class OpenAIAsync:
    """`openai`, asynchronous."""

    def __init__(self, url: str) -> None:
        from openai import AsyncOpenAI

        self.make: Callable[[], Any] = lambda: AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

    def _ask(self, ask: Callable[[Any], Awaitable[T]]) -> T:
        async def run() -> T:
            async with self.make() as client:
                return await ask(client.chat.completions)

        return asyncio.run(run())

    def text(self, text: str, image: str | None = None) -> str:
        async def ask(chat: Any) -> str:
            answer = await chat.create(model=MODEL, messages=turn(text, image), **GREEDY)
            return str(answer.choices[0].message.content)

        return self._ask(ask)

    def video(self, text: str, url: str) -> str:
        async def ask(chat: Any) -> str:
            answer = await chat.create(model=MODEL, messages=turn(text, video=url), **GREEDY)
            return str(answer.choices[0].message.content)

        return self._ask(ask)

    def stream(self, text: str) -> Iterator[str]:
        async def ask(chat: Any) -> list[str]:
            chunks = await chat.create(model=MODEL, messages=turn(text), stream=True, **GREEDY)
            return [chunk.choices[0].delta.content or "" async for chunk in chunks]

        yield from self._ask(ask)

    def tools(self, text: str) -> list[Call]:
        from openai import pydantic_function_tool

        async def ask(chat: Any) -> list[Call]:
            tool = pydantic_function_tool(Weather, name="get_weather")
            answer = await chat.parse(model=MODEL, messages=turn(text), tools=[tool], **REQUIRED)
            functions = [call.function for call in answer.choices[0].message.tool_calls]
            return [(function.name, function.parsed_arguments.model_dump()) for function in functions]

        return self._ask(ask)

    def streamed_tools(self, text: str) -> tuple[list[Call], int]:
        async def ask(chat: Any) -> tuple[list[Call], int]:
            num_pieces = 0
            async with chat.stream(model=MODEL, messages=turn(text), tools=[_strict(TOOL)], **REQUIRED) as events:
                async for event in events:
                    num_pieces += event.type == "tool_calls.function.arguments.delta"
                message = (await events.get_final_completion()).choices[0].message
            functions = [call.function for call in message.tool_calls]
            return [(function.name, function.parsed_arguments) for function in functions], num_pieces

        return self._ask(ask)

    def schema(self, text: str) -> dict[str, Any]:
        async def ask(chat: Any) -> dict[str, Any]:
            answer = await chat.parse(model=MODEL, messages=turn(text), response_format=Capital, max_tokens=ROOM)
            parsed: Capital = answer.choices[0].message.parsed
            return parsed.model_dump()

        return self._ask(ask)

    def error(self) -> int:
        async def ask(chat: Any) -> int:
            from openai import APIStatusError

            try:
                await chat.create(model="none", messages=turn("hi"))
            except APIStatusError as error:
                return error.status_code
            return 200

        return self._ask(ask)

    def cancel(self) -> None:
        async def ask(chat: Any) -> None:
            asked: Any = {**LONG, "extra_body": {"ignore_eos": True}}
            chunks = await chat.create(model=MODEL, messages=turn("hi"), stream=True, **asked)
            await anext(aiter(chunks))
            await chunks.close()

        self._ask(ask)


def _strict(tool: dict[str, Any]) -> dict[str, Any]:
    """The helper parses arguments of strict tools alone."""
    return {**tool, "function": {**tool["function"], "strict": True}}
