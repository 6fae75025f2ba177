"""What the server says it also takes: random answers of each endpoint are sent back, and none is refused.

They are sent back as they are, and as the endpoint's own client sends them. The server refuses unknown fields, so
nothing of an answer is ignored either. `TERNVL_REPLAYS` sets the number of answers for each endpoint and each kind of
engine.
"""

from __future__ import annotations

import importlib
import json
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from ternvl.config import EngineConfig
from ternvl.engine.request import Request
from ternvl.types import FinishReason, TokenOutput
from tests.counts import count
from tests.server.endpoints import ENDPOINTS, HI, request_of
from tests.server.fakes import ScriptedEngine, serving, tiny_llm

ROOT = Path(__file__).resolve().parents[3]
REPLAYS = count("TERNVL_REPLAYS")
ON = {"role": "user", "content": "Go on."}


def reply_to(endpoint: str, asked: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    """The next request of the conversation: the answer as it was, results of its calls, and a turn of the user."""
    brief: dict[str, Any] = {"tools": asked["tools"]}
    if endpoint == "chat/completions":
        message = answer["choices"][0]["message"]
        calls = message.get("tool_calls") or []
        results = [{"role": "tool", "tool_call_id": call["id"], "content": "42"} for call in calls]
        return {**brief, "max_tokens": 1, "messages": [HI, message, *results, ON]}
    if endpoint == "responses":
        calls = [item for item in answer["output"] if item["type"] != "message"]
        outputs = [{"type": f"{call['type']}_output", "call_id": call["call_id"], "output": "42"} for call in calls]
        return {**brief, "max_output_tokens": 1, "input": [HI, *answer["output"], *outputs, ON]}
    calls = [block for block in answer["content"] if block["type"] == "tool_use"]
    blocks: list[Any] = [{"type": "tool_result", "tool_use_id": call["id"], "content": "42"} for call in calls]
    blocks.append({"type": "text", "text": "Go on."})
    turns = [HI, {"role": answer["role"], "content": answer["content"]}, {"role": "user", "content": blocks}]
    return {**brief, "max_tokens": 1, "messages": turns}


def through_the_client(endpoint: str, answer: dict[str, Any]) -> dict[str, Any]:
    """The answer as the endpoint's own client reads it and sends it back, with a null for all that it lacks."""
    kind: Any = {"chat/completions": ChatCompletion, "responses": Response, "messages": anthropic.types.Message}[
        endpoint
    ]
    sent: dict[str, Any] = kind.model_validate(answer).model_dump(mode="json", by_alias=True)
    return sent


def replay(client: httpx.Client, endpoint: str, chat: dict[str, Any]) -> bool:
    """Ask, send the answer back, and return whether the answer had a call."""
    asked = request_of(endpoint, chat)
    answer = client.post(f"/v1/{endpoint}", json=asked)
    assert answer.status_code == 200, (answer.text, asked)
    for whole in (answer.json(), through_the_client(endpoint, answer.json())):
        reply = reply_to(endpoint, asked, whole)
        again = client.post(f"/v1/{endpoint}", json=reply)
        assert again.status_code == 200, (again.text, reply)
    return any(word in str(again.request.content) for word in ("tool_call_id", "call_output", "tool_result"))


@pytest.fixture(scope="module")
def benchmark() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("tool_calls")


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_random_answers_of_random_weights(benchmark: Any, endpoint: str) -> None:
    rng = random.Random(endpoint)
    bodies = []
    for _ in range(REPLAYS):
        body = benchmark.random_request(rng, max_tokens=rng.randrange(1, 90))
        bodies.append(body | {"tools": body.get("tools") or []})
    with (
        serving(tiny_llm(max_model_len=8192), strict=True) as url,
        httpx.Client(base_url=url, timeout=110) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        had_calls = list(pool.map(lambda body: replay(client, endpoint, body), bodies))
    assert any(had_calls)


def test_completions_are_continued() -> None:
    """The text of a completion is the next prompt's end, and so are its tokens."""
    rng = random.Random(5)
    with (
        serving(tiny_llm(max_model_len=1024), strict=True) as url,
        httpx.Client(base_url=url, timeout=110) as client,
    ):
        for _ in range(REPLAYS):
            prompt = "".join(rng.choices("ab the é日<|im_start|><tool_call>\n", k=rng.randrange(1, 12)))
            asked = {"prompt": prompt, "max_tokens": rng.randrange(1, 30), "temperature": 2, "seed": rng.randrange(99)}
            asked |= {"echo": rng.choice([True, None]), "stop": rng.choice([None, ["a"]]), "n": rng.choice([1, 3])}
            answer = client.post("/v1/completions", json=asked).raise_for_status().json()
            for choice in answer["choices"]:
                text = choice["text"] if asked["echo"] else prompt + choice["text"]
                tokens = client.post("/tokenize", json={"prompt": text}).raise_for_status().json()["tokens"]
                for further in (text, tokens):
                    again = client.post("/v1/completions", json={"prompt": further, "max_tokens": 1})
                    assert again.status_code == 200, (again.text, further)
                    assert again.json()["usage"]["prompt_tokens"] == len(tokens)


class FastEngine(ScriptedEngine):
    """Answers with several tokens a step, as speculation does."""

    step_size = 500

    def _next(self, request: Request, tokens: Iterator[int]) -> TokenOutput:
        if token_ids := tuple(islice(tokens, self.step_size)):
            return TokenOutput(request.id, token_ids)
        del self._running[request.id]
        return TokenOutput(request.id, (), FinishReason.STOP)


TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
VALUES: list[Callable[[random.Random], str]] = [
    lambda rng: rng.choice(["1", "-0", "1e999", "0.1", "null", '""', "[]", "{}", '"\\ud800"', '"é\\n</tool_call>"']),
    lambda rng: "9" * rng.choice([17, 4300, 4301, 4500]),
    lambda rng: "[" * (depth := rng.choice([3, 50, 70, 300])) + "]" * depth,
    lambda rng: '{"a":' * (depth := rng.choice([3, 50, 70, 300])) + "1" + "}" * depth,
]


def piece(rng: random.Random) -> str:
    """A text, or a call of the tool."""
    if rng.random() < 0.4:
        return rng.choice(["So. ", "\n", "é日", "<think>", "</think>", "<tool_call>", "<box>", "<image>", "�", '{"a'])
    arguments = ", ".join(f'"{index}": {rng.choice(VALUES)(rng)}' for index in range(rng.randrange(3)))
    return f'<tool_call>\n{{"name": "look", "arguments": {{{arguments}}}}}\n</tool_call>'


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_random_answers_of_a_script(endpoint: str) -> None:
    rng = random.Random(endpoint)
    llm = tiny_llm()
    engine = FastEngine("", config=EngineConfig(max_model_len=65_536))
    llm.engine = llm.service.engine = engine  # type: ignore[assignment]
    had_calls = []
    with serving(llm, strict=True) as url, httpx.Client(base_url=url, timeout=110) as client:
        for _ in range(REPLAYS):
            text = "".join(piece(rng) for _ in range(rng.randrange(4)))
            engine.text = text[: rng.randrange(len(text) + 1)] if rng.random() < 0.6 else text
            engine.requests.clear()
            had_calls.append(replay(client, endpoint, {"tools": [TOOL], "max_tokens": 40_000}))
    assert any(had_calls)


def test_a_replayed_answer_is_the_text_of_the_model() -> None:
    """Calls and text of the history read as they were drawn, the cut call included."""
    llm = tiny_llm()
    engine = FastEngine('So. <tool_call>\n{"name": "look", "arguments": {"a": [1, 2', config=EngineConfig())
    llm.engine = llm.service.engine = engine  # type: ignore[assignment]
    with serving(llm, strict=True) as url, httpx.Client(base_url=url, timeout=110) as client:
        for endpoint in ENDPOINTS[:2]:
            assert replay(client, endpoint, {"tools": [TOOL], "max_tokens": 400})
            words = llm.tokenizer.decode(engine.requests[-1].prompt.token_ids)
            assert '<tool_call>\n{"name": "look", "arguments": {"a": [1, 2}\n</tool_call>' in words


@pytest.mark.parametrize("step_size", [60, 70, 80, 90, 100, 120])
def test_a_step_may_end_a_call_and_go_on_with_text_and_another_call(step_size: int) -> None:
    llm = tiny_llm()
    calls = ['<tool_call>\n{"name": "look", "arguments": {"a": "%s"}}\n</tool_call>' % (each * 30) for each in "xy"]
    engine = FastEngine(calls[0] + "So. " + calls[1] + "Then.", config=EngineConfig())
    engine.step_size = step_size
    llm.engine = llm.service.engine = engine  # type: ignore[assignment]
    expected = [{"a": "x" * 30}, {"a": "y" * 30}]
    with serving(llm) as url, httpx.Client(base_url=url, timeout=110) as client:
        chat = {"tools": [TOOL], "max_tokens": 400}
        answers = [client.post(f"/v1/{each}", json=request_of(each, chat)).json() for each in ENDPOINTS[1:]]
    items, blocks = answers[0]["output"], answers[1]["content"]
    assert [json.loads(item["arguments"]) for item in items if item["type"] == "function_call"] == expected
    assert [block["input"] for block in blocks if block["type"] == "tool_use"] == expected
    said = "".join(item["content"][0]["text"] for item in items if item["type"] == "message")
    assert said == "".join(block["text"] for block in blocks if block["type"] == "text") == "So. Then."
