"""The clients people use, each behind the same few verbs. A client that is not installed raises ImportError."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

IMAGE_QUESTION = "What is in this image?"
LONG = {"max_tokens": 4000, "temperature": 0}
GREEDY = {"max_tokens": 24, "temperature": 0}


def _turn(text: str, image: str | None = None) -> list[Any]:
    if image is None:
        return [{"role": "user", "content": text}]
    return [
        {
            "role": "user",
            "content": [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": image}}],
        }
    ]


class OpenAIChat:
    """`openai`, Chat Completions."""

    def __init__(self, url: str) -> None:
        from openai import OpenAI

        self.client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

    def text(self, text: str, image: str | None = None) -> str:
        answer = self.client.chat.completions.create(model="ternvl-nano", messages=_turn(text, image), **GREEDY)  # type: ignore[call-overload]
        return str(answer.choices[0].message.content)

    def stream(self, text: str) -> Iterator[str]:
        with self.client.chat.completions.create(
            model="ternvl-nano",
            messages=_turn(text),
            stream=True,
            **GREEDY,  # type: ignore[call-overload]
        ) as chunks:
            for chunk in chunks:
                yield chunk.choices[0].delta.content or ""

    def error(self) -> int:
        from openai import APIStatusError

        try:
            self.client.chat.completions.create(model="none", messages=_turn("hi"))  # type: ignore[arg-type]
        except APIStatusError as error:
            return error.status_code
        return 200

    def cancel(self) -> None:
        asked: Any = {**LONG, "extra_body": {"ignore_eos": True}}
        with self.client.chat.completions.create(
            model="ternvl-nano", messages=_turn("hi"), stream=True, **asked
        ) as chunks:
            next(iter(chunks))


class OpenAIAsync:
    """`openai`, asynchronous."""

    def __init__(self, url: str) -> None:
        from openai import AsyncOpenAI

        self.make: Callable[[], Any] = lambda: AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

    def text(self, text: str, image: str | None = None) -> str:
        async def ask() -> str:
            async with self.make() as client:
                answer = await client.chat.completions.create(
                    model="ternvl-nano", messages=_turn(text, image), **GREEDY
                )
                return str(answer.choices[0].message.content)

        return asyncio.run(ask())

    def stream(self, text: str) -> Iterator[str]:
        async def ask() -> list[str]:
            async with self.make() as client:
                chunks = await client.chat.completions.create(
                    model="ternvl-nano", messages=_turn(text), stream=True, **GREEDY
                )
                return [chunk.choices[0].delta.content or "" async for chunk in chunks]

        yield from asyncio.run(ask())

    def error(self) -> int:
        async def ask() -> int:
            from openai import APIStatusError

            async with self.make() as client:
                try:
                    await client.chat.completions.create(model="none", messages=_turn("hi"))
                except APIStatusError as error:
                    return error.status_code
            return 200

        return asyncio.run(ask())

    def cancel(self) -> None:
        async def ask() -> None:
            async with self.make() as client:
                chunks = await client.chat.completions.create(
                    model="ternvl-nano", messages=_turn("hi"), stream=True, **LONG, extra_body={"ignore_eos": True}
                )
                await anext(aiter(chunks))
                await chunks.close()

        asyncio.run(ask())


class OpenAIResponses(OpenAIChat):
    """`openai`, Responses."""

    def text(self, text: str, image: str | None = None) -> str:
        parts: list[Any] = [{"type": "input_text", "text": text}]
        if image is not None:
            parts.append({"type": "input_image", "image_url": image})
        asked: Any = [{"role": "user", "content": parts}]
        answer = self.client.responses.create(model="ternvl-nano", input=asked, max_output_tokens=24, temperature=0)
        return answer.output_text

    def stream(self, text: str) -> Iterator[str]:
        with self.client.responses.stream(
            model="ternvl-nano", input=text, max_output_tokens=24, temperature=0
        ) as events:
            for event in events:
                if event.type == "response.output_text.delta":
                    yield event.delta

    def error(self) -> int:
        from openai import APIStatusError

        try:
            self.client.responses.create(model="none", input="hi")
        except APIStatusError as error:
            return error.status_code
        return 200

    def cancel(self) -> None:
        with self.client.responses.create(
            model="ternvl-nano", input="hi", max_output_tokens=4000, stream=True, extra_body={"ignore_eos": True}
        ) as events:
            next(iter(events))


class AnthropicMessages:
    """`anthropic`, Messages."""

    def __init__(self, url: str) -> None:
        from anthropic import Anthropic

        self.client = Anthropic(base_url=url, api_key="none", max_retries=0)

    def text(self, text: str, image: str | None = None) -> str:
        content: list[Any] = [{"type": "text", "text": text}]
        if image is not None:
            data = image.partition(",")[2]
            content.append({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}})
        message = self.client.messages.create(
            model="ternvl-nano",
            max_tokens=24,
            messages=[{"role": "user", "content": content}],
            extra_body={"temperature": 0},
        )
        return "".join(block.text for block in message.content if block.type == "text")

    def stream(self, text: str) -> Iterator[str]:
        with self.client.messages.stream(
            model="ternvl-nano",
            max_tokens=24,
            messages=[{"role": "user", "content": text}],
            extra_body={"temperature": 0},
        ) as stream:
            yield from stream.text_stream

    def error(self) -> int:
        from anthropic import APIStatusError

        try:
            self.client.messages.create(model="none", max_tokens=1, messages=[{"role": "user", "content": "hi"}])
        except APIStatusError as error:
            return error.status_code
        return 200

    def cancel(self) -> None:
        with self.client.messages.stream(
            model="ternvl-nano",
            max_tokens=4000,
            messages=[{"role": "user", "content": "hi"}],
            extra_body={"ignore_eos": True},
        ) as stream:
            next(iter(stream.text_stream))


class Curl:
    """`curl`."""

    def __init__(self, url: str) -> None:
        subprocess.run(["curl", "--version"], check=True, capture_output=True)
        self.url = f"{url}/v1/chat/completions"

    def _command(self, body: dict[str, Any]) -> list[str]:
        return ["curl", "-sN", "-m", "60", self.url, "-H", "Content-Type: application/json", "-d", json.dumps(body)]

    def _ask(self, body: dict[str, Any]) -> str:
        return subprocess.run(self._command(body), check=True, capture_output=True, encoding="utf-8").stdout

    def text(self, text: str, image: str | None = None) -> str:
        answer = json.loads(self._ask({"messages": _turn(text, image), **GREEDY}))
        return str(answer["choices"][0]["message"]["content"])

    def stream(self, text: str) -> Iterator[str]:
        events = self._ask({"messages": _turn(text), "stream": True, **GREEDY}).split("\n\n")
        assert events[-2:] == ["data: [DONE]", ""]
        for event in events[:-2]:
            yield json.loads(event.removeprefix("data: "))["choices"][0]["delta"].get("content", "")

    def error(self) -> int:
        error = json.loads(self._ask({"messages": _turn("hi"), "model": "none"}))["error"]
        return 404 if error["code"] == "model_not_found" else 0

    def cancel(self) -> None:
        body = {"messages": _turn("hi"), "stream": True, "ignore_eos": True, **LONG}
        with subprocess.Popen(self._command(body), stdout=subprocess.PIPE) as process:
            assert process.stdout
            process.stdout.readline()
            process.terminate()


class LangChain:
    """LangChain's `ChatOpenAI`."""

    def __init__(self, url: str) -> None:
        from langchain_openai import ChatOpenAI

        kind: Any = ChatOpenAI
        self.make = lambda **fields: kind(base_url=f"{url}/v1", api_key="none", max_retries=0, **fields)

    def _model(self) -> Any:
        return self.make(model="ternvl-nano", **GREEDY)

    def text(self, text: str, image: str | None = None) -> str:
        return str(self._model().invoke(_turn(text, image)).content)

    def stream(self, text: str) -> Iterator[str]:
        for chunk in self._model().stream(_turn(text)):
            yield chunk.content

    def error(self) -> int:
        from openai import APIStatusError

        try:
            self.make(model="none").invoke("hi")
        except APIStatusError as error:
            return error.status_code
        return 200

    def cancel(self) -> None:
        stream = self.make(model="ternvl-nano", extra_body={"ignore_eos": True}, **LONG).stream("hi")
        next(stream)
        stream.close()


CLIENTS: tuple[type[Any], ...] = (OpenAIChat, OpenAIAsync, OpenAIResponses, AnthropicMessages, Curl, LangChain)
