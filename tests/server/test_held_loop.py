"""No request stops the event loop, and with it all streams, for long. Times are of the processor, not of the clock."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from ternvl.llm import LLM
from ternvl.server import long_json
from tests.server.fakes import serving

MOST = 0.1
"""Seconds of the processor for one callback of the loop."""
USER = {"role": "user", "content": "hi"}
TEXT = {"type": "text", "text": "a"}
TURNS = [USER, {"role": "assistant", "content": "a"}]
IDS = [5 + i % 800 for i in range(1_500)]
SCHEMA = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(900)}}
NO_IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 26_000_000}}


def chat(**fields: Any) -> tuple[str, dict[str, Any]]:
    return "/v1/chat/completions", {"messages": [USER], "max_tokens": 2, **fields}


def tools(count: int) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": f"f{i}", "parameters": {"type": "object"}}} for i in range(count)]


def form(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}


BODIES = {
    "tools": chat(tools=tools(1_000)),
    "too many tools": chat(tools=tools(20_000)),
    "messages": ("/v1/chat/completions", {"messages": TURNS * 4_000}),
    "parts": ("/v1/chat/completions", {"messages": [{"role": "user", "content": [TEXT] * 40_000}]}),
    "input items": ("/v1/responses", {"input": TURNS * 4_000}),
    "turns": ("/v1/messages", {"messages": TURNS * 4_000, "max_tokens": 2}),
    "an unknown field": chat(unknown=list(range(900_000))),
    "metadata": chat(metadata={f"k{i}": "v" for i in range(200_000)}),
    "biases": chat(logit_bias={str(i): 1 for i in range(100_000)}),
    "stop strings": chat(stop=["ab" * 500] * 16, n=128),
    "a schema": chat(response_format=form(SCHEMA)),
    "a schema in a schema": chat(response_format=form({"type": "object", "properties": {"a": SCHEMA, "b": SCHEMA}})),
    "choices": chat(structured_outputs={"choice": [str(i) for i in range(100_000)]}),
    "a regular expression": chat(structured_outputs={"regex": "a?" * 2_000 + "a" * 2_000}),
    "a long text": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "word " * 1_200_000}]}),
    "a text for its tokens": ("/tokenize", {"prompt": "word " * 1_200_000, "return_token_strs": True}),
    "tokens of a long text": ("/tokenize", {"prompt": "word " * 20_000, "return_token_strs": True}),
    "token ids": ("/v1/completions", {"prompt": [5] * 900_000, "max_tokens": 1}),
    "token ids for their text": ("/detokenize", {"tokens": [5] * 300_000}),
    "an image that is none": ("/v1/chat/completions", {"messages": [{"role": "user", "content": [NO_IMAGE]}]}),
    "log probabilities of a prompt": ("/v1/completions", {"prompt": IDS, "max_tokens": 1, "prompt_logprobs": 20}),
    "an echo": ("/v1/completions", {"prompt": IDS, "max_tokens": 1, "echo": True, "logprobs": 5}),
    "many answers": chat(n=128, max_tokens=12, logprobs=True, top_logprobs=20),
    "many streams": chat(n=128, max_tokens=12, logprobs=True, top_logprobs=20, stream=True),
}  # fmt: skip


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(LLM(max_model_len=4096), loop="asyncio") as url:
        gc.collect()
        gc.freeze()  # as `ternvl serve` does: a collection would look at all that the tests have imported
        yield url
        gc.unfreeze()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, str]]:
    """The callbacks of event loops that took long, with their times."""
    found: list[tuple[float, str]] = []
    run = asyncio.Handle._run

    def timed(self: asyncio.Handle) -> None:
        began = time.thread_time()
        run(self)
        if (taken := time.thread_time() - began) > MOST:
            found.append((taken, repr(self)[:1000]))

    monkeypatch.setattr(asyncio.Handle, "_run", timed)
    return found


@pytest.mark.parametrize("name", BODIES)
def test_no_request_holds_the_event_loop(url: str, held: list[tuple[float, str]], name: str) -> None:
    path, body = BODIES[name]
    answer = httpx.post(url + path, json=body, timeout=110)
    assert answer.status_code in (200, 400), answer.text[:300]
    assert held == []


def test_a_callback_that_holds_the_loop_is_found(held: list[tuple[float, str]]) -> None:
    async def work() -> None:
        began = time.thread_time()
        while time.thread_time() - began < 1.5 * MOST:
            pass

    asyncio.run(work())
    assert len(held) == 1


@pytest.mark.parametrize("value", [None, [], {}, 'é\u2028"', -0.5, {"a": [1, {"b": [[[[[[{"c": "d"}]]]]]]}]}, [TURNS]])
def test_long_json_is_json(value: Any) -> None:
    assert long_json.encode(value) == json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def test_long_json_has_no_numbers_that_json_lacks() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        long_json.encode({"a": [float("nan")]})
