"""Clients that ask a server, and what became of each request."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

CHAT = "/v1/chat/completions"


@dataclass
class Outcome:
    """What became of a request."""

    status: int = 0
    text: str = ""
    num_tokens: int = 0
    error: str = ""
    """What the server said was wrong; "cut" if a stream ended without saying anything."""
    first: float = 0.0
    """Seconds until the first event."""
    seconds: float = 0.0
    usage: dict[str, Any] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Whether the answer came as it was asked for."""
        return self.status == 200 and not self.error


def words(text: str, **fields: Any) -> dict[str, Any]:
    """Return the body of a chat request."""
    return {"messages": [{"role": "user", "content": text}], "temperature": 0, **fields}


def picture(image: str, text: str = "What is in this image?", **fields: Any) -> dict[str, Any]:
    """Return the body of a chat request with an image, a `data:` URL."""
    parts = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": text}]
    return {"messages": [{"role": "user", "content": parts}], "temperature": 0, **fields}


async def ask(client: httpx.AsyncClient, body: dict[str, Any], path: str = CHAT) -> Outcome:
    """Send one request, read its whole answer and return what became of it."""
    found, began = Outcome(), time.perf_counter()
    try:
        if not body.get("stream"):
            answer = await client.post(path, json=body)
            found.status = answer.status_code
            if found.status != 200:
                found.error = answer.text  # our error, or a sentence of Serve's proxy
            else:
                value = answer.json()
                found.text = value["choices"][0]["message"]["content"] or ""
                found.usage = value["usage"]
                found.num_tokens = found.usage["completion_tokens"]
        else:
            await _stream(client, body, path, found, began)
    except httpx.HTTPError as error:
        found.error = f"{type(error).__name__}: {error}"
    found.seconds = time.perf_counter() - began
    return found


async def _stream(client: httpx.AsyncClient, body: dict[str, Any], path: str, found: Outcome, began: float) -> None:
    has_ended = False
    async with client.stream("POST", path, json=body) as answer:
        found.status = answer.status_code
        if answer.status_code != 200:
            found.error = (await answer.aread()).decode()
            return
        async for line in answer.aiter_lines():
            if not line.startswith("data: "):
                continue
            found.first = found.first or time.perf_counter() - began
            has_ended = has_ended or line == "data: [DONE]"
            if not has_ended:
                _take(json.loads(line[6:]), found)
    if not has_ended and not found.error:
        found.error = "cut"


def _take(value: dict[str, Any], found: Outcome) -> None:
    if "error" in value:
        found.error = value["error"]["message"]
        return
    for choice in value["choices"]:
        found.text += choice["delta"].get("content") or ""
        found.num_tokens += bool(choice["delta"])
    found.usage = value.get("usage") or found.usage


async def ask_all(url: str, bodies: Sequence[dict[str, Any]], concurrency: int) -> list[Outcome]:
    """Send requests, at most so many at the same time, and return what became of each."""
    places = asyncio.Semaphore(concurrency)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:

        async def one(body: dict[str, Any]) -> Outcome:
            async with places:
                return await ask(client, body)

        return list(await asyncio.gather(*map(one, bodies)))


def asked(url: str, bodies: Sequence[dict[str, Any]], concurrency: int = 8) -> list[Outcome]:
    """Return `ask_all` from a program without an event loop."""
    return asyncio.run(ask_all(url, bodies, concurrency))


def mixed(number: int) -> dict[str, Any]:
    """Return a short request; each second one is a stream."""
    return words(f"Number {number}: name the european capitals", max_tokens=24, stream=number % 2 == 0)


@contextmanager
def under_load(
    url: str, concurrency: int = 4, body: Callable[[int], dict[str, Any]] = mixed
) -> Iterator[list[Outcome]]:
    """Let clients send one request after another until the context ends; its value gets what became of them."""
    outcomes: list[Outcome] = []
    has_ended = threading.Event()

    def work(client: int) -> None:
        count = 0
        while not has_ended.is_set():
            outcomes.extend(asked(url, [body(client * 1000 + count)], 1))
            count += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(concurrency)]
    for each in threads:
        each.start()
    try:
        yield outcomes
    finally:
        has_ended.set()
        for each in threads:
            each.join()


def failed(outcomes: Sequence[Outcome]) -> int:
    """Return how many requests failed, and print why."""
    for each in outcomes:
        if not each.is_whole:
            print("failed:", each.status, each.error[:200])
    return sum(not each.is_whole for each in outcomes)
