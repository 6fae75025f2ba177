"""The page's examples, in the page's words, in both languages."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterable, Iterable
from pathlib import Path
from typing import Any

import pytest

from ternvl.azion import Azion
from tests.azion import page

SEED = Path(__file__).resolve().parents[2] / ".." / "shared" / "seed.txt"

DOCS = Path(__file__).resolve().parents[2] / "docs" / "azion.md"

CAPITALS = (
    "Amsterdam, Andorra la Vella, Athens, Belgrade, Berlin, Bern, Bratislava, Brussels, Bucharest, Budapest, Chisinau, "
    "Copenhagen, Dublin, Helsinki, Kyiv, Lisbon, Ljubljana, London, Luxembourg, Madrid, Minsk, Monaco, Moscow, "
    "Nicosia, Oslo, Paris, Podgorica, Prague, Pristina, Reykjavik, Riga, Rome, San Marino, Sarajevo, Skopje, Sofia, "
    "Stockholm, Tallinn, Tirana, Vaduz, Valletta, Vatican City, Vienna, Vilnius, Warsaw, Zagreb."
)
ANSWERS = {page.TEXT: CAPITALS, page.IMAGE: "A red circle and a blue square."}


@pytest.mark.skipif(not SEED.is_file(), reason="the page is not on this machine")
@pytest.mark.parametrize("example", [page.TEXT, page.IMAGE], ids=["text", "image"])
def test_the_examples_are_the_pages(example: str) -> None:
    assert example in SEED.read_text(encoding="utf-8")


def test_the_documentation_shows_the_answers() -> None:
    shown = " ".join(DOCS.read_text(encoding="utf-8").split())
    for example, answer in ANSWERS.items():
        assert answer in shown
        assert json.dumps(page.request_of(example)["messages"][1]["content"])[1:-1] in shown


def text_of(chunks: Iterable[dict[str, Any]]) -> str:
    """What a stream says; it must have the protocol's shape."""
    chunks = list(chunks)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert {chunk["model"] for chunk in chunks} == {"ternvl-nano"}
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert choices[0]["delta"]["role"] == "assistant"
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    return "".join(choice["delta"].get("content", "") for choice in choices)


async def text_example() -> Any:
    modelResponse = await Azion.AI.run("opengvlab-internvl3-1b-instruct", {
"stream": True,
"messages": [
{
"role": "system",
"content": "You are a helpful assistant."
},
{
"role": "user",
"content": "Name the european capitals"
}
]
})  # fmt: skip
    return modelResponse


async def image_example() -> Any:
    modelResponse = await Azion.AI.run("opengvlab-internvl3-1b-instruct", {
"stream": True,
"messages": [
{
"role": "system",
"content": "You are a helpful assistant."
},
{
"role": "user",
"content": [
{
"type": "text",
"text": "What is in this image?"
},
{
"type": "image_url",
"image_url": {
"url": "https://example.com/image.jpg"
}
}
]
}
]
})  # fmt: skip
    return modelResponse


async def collect(items: AsyncIterable[Any]) -> list[Any]:
    return [item async for item in items]


@pytest.mark.usefixtures("mode", "example_com")
@pytest.mark.parametrize(
    ("run", "example"), [(text_example, page.TEXT), (image_example, page.IMAGE)], ids=["text", "image"]
)
def test_in_python(run: Any, example: str) -> None:
    async def answers() -> tuple[str, str, str]:
        request = {**page.request_of(example), "stream": False}
        chunks, events, whole = await asyncio.gather(
            collect(await run()),
            collect((await run()).bytes()),
            Azion.AI.run("opengvlab-internvl3-1b-instruct", request),
        )
        return text_of(chunks), text_of(parsed(b"".join(events).decode())), whole["choices"][0]["message"]["content"]

    assert asyncio.run(answers()) == (ANSWERS[example],) * 3


@pytest.mark.usefixtures("example_com")
@pytest.mark.parametrize("example", [page.TEXT, page.IMAGE], ids=["text", "image"])
def test_in_javascript(example: str, url: str, tmp_path: Path) -> None:
    source = f"""
import "ternvl-azion/register";
async function chunks() {{
{example}
const chunks = [];
for await (const chunk of modelResponse) chunks.push(chunk);
return chunks;
}}
async function body() {{
{example}
return await new Response(modelResponse, {{ headers: {{ "content-type": "text/event-stream" }} }}).text();
}}
const request = {json.dumps({**page.request_of(example), "stream": False})};
const whole = Azion.AI.run("opengvlab-internvl3-1b-instruct", request);
console.log(JSON.stringify(await Promise.all([chunks(), body(), whole])));
"""
    chunks, body, whole = json.loads(page.run_module(source, tmp_path, url))
    texts = text_of(chunks), text_of(parsed(body)), whole["choices"][0]["message"]["content"]
    assert texts == (ANSWERS[example],) * 3


def parsed(events: str) -> list[Any]:
    """Chunks of a whole stream, which must end as the protocol says."""
    lines = [line.removeprefix("data: ") for line in events.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]
