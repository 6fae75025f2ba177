"""A stream, put together, is the answer that is not streamed: random requests of every endpoint, and random bytes."""

from __future__ import annotations

import json
import random
from typing import Any
from unicodedata import normalize

import httpx
import pytest

from tests.counts import count
from tests.fakes import tiny_tokenizer
from tests.server.fakes import scripted_llm, serving

NUM_REQUESTS = count("TERNVL_STREAM_EXAMPLES")
TORTURE = normalize(
    "NFC",
    "a\N{COMBINING ACUTE ACCENT}\N{COMBINING DOT BELOW} 你好，世界 "
    "\N{MAN}\N{ZERO WIDTH JOINER}\N{WOMAN}\N{ZERO WIDTH JOINER}\N{GIRL} "
    "\U0001f1eb\U0001f1f7 נָ ก็ \U0001d54f \u2066x\u2069",
)
PATHS = {
    "/v1/chat/completions": "max_tokens",
    "/v1/completions": "max_tokens",
    "/v1/responses": "max_output_tokens",
    "/v1/messages": "max_tokens",
}


def values(response: httpx.Response) -> list[dict[str, Any]]:
    """What the events of a stream hold."""
    assert response.status_code == 200, response.text
    lines = [line.removeprefix("data: ") for line in response.text.split("\n") if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def pieces(path: str, stream: list[dict[str, Any]]) -> dict[int, list[str]]:
    """The texts of each choice's deltas."""
    found: dict[int, list[str]] = {}
    for value in stream:
        for choice in value.get("choices", ()):
            text = choice["text"] if path == "/v1/completions" else choice["delta"].get("content")
            found.setdefault(choice["index"], []).append(text or "")
        if value.get("type") == "response.output_text.delta":
            found.setdefault(0, []).append(value["delta"])
        if value.get("type") == "content_block_delta":
            found.setdefault(0, []).append(value["delta"]["text"])
    return found


def reasons(path: str, stream: list[dict[str, Any]]) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for value in stream:
        found |= {each["index"]: each["finish_reason"] for each in value.get("choices", ()) if each["finish_reason"]}
        if value.get("type") == "message_delta":
            found[0] = (value["delta"]["stop_reason"], value["delta"]["stop_sequence"])
        if value.get("type") in ("response.completed", "response.incomplete"):
            found[0] = value["response"]["status"]
    return found


def answer(path: str, whole: dict[str, Any]) -> tuple[dict[int, str], dict[int, Any]]:
    """Texts and reasons of an answer that is not streamed."""
    if path == "/v1/responses":
        texts = [part["text"] for item in whole["output"] for part in item["content"]]
        return ({0: "".join(texts)} if texts else {}), {0: whole["status"]}
    if path == "/v1/messages":
        text = "".join(block["text"] for block in whole["content"])
        return {0: text}, {0: (whole["stop_reason"], whole["stop_sequence"])}
    choices = whole["choices"]
    texts = [choice["text"] if path == "/v1/completions" else choice["message"]["content"] for choice in choices]
    return dict(enumerate(texts)), {index: choice["finish_reason"] for index, choice in enumerate(choices)}


def random_request(rng: random.Random) -> tuple[str, dict[str, Any]]:
    path = rng.choice([*PATHS])
    said = "".join(rng.choices("ab the\N{CAT FACE}\né", k=rng.randrange(1, 12)))
    body: dict[str, Any] = {
        PATHS[path]: rng.randrange(1, 40),
        "seed": rng.randrange(2**32),
        "temperature": rng.choice([0, 0.7, 1, 2]),
        "top_p": rng.choice([1, 0.9]),
        "top_k": rng.choice([-1, 30]),
        "presence_penalty": rng.choice([0, 1]),
        "repetition_penalty": rng.choice([1, 1.2]),
        "stop": rng.choice([None, ["a"], ["the", "e", "\N{REPLACEMENT CHARACTER}"]]),
        "include_stop_str_in_output": rng.choice([None, True]),
        "skip_special_tokens": rng.choice([None, False]),
        "logit_bias": rng.choice([None, {str(rng.randrange(260)): 4 for _ in range(5)}]),
        "allowed_token_ids": rng.choice([None, [*range(160, 256)]]),
        "ignore_eos": rng.choice([None, True]),
    }
    if path == "/v1/completions":
        body |= {"prompt": rng.choice([said, [said, "b"]]), "n": rng.choice([1, 2]), "echo": rng.choice([None, True])}
        body["logprobs"] = rng.choice([None, 0, 2])
    elif path == "/v1/responses":
        body["input"] = said
    else:
        body["messages"] = [{"role": "user", "content": said}]
    if path == "/v1/chat/completions":
        body["n"] = rng.choice([1, 3])
    return path, body


def check(http: httpx.Client, path: str, body: dict[str, Any]) -> None:
    response = http.post(path, json=body)
    assert response.status_code == 200, (response.text, body)
    texts, ends = answer(path, response.json())
    stream = values(http.post(path, json={**body, "stream": True}))
    joined = {index: "".join(deltas) for index, deltas in pieces(path, stream).items()}
    assert {index: text for index, text in joined.items() if text} == {
        index: text for index, text in texts.items() if text
    }, body
    assert reasons(path, stream) == ends


def test_random_requests(http: httpx.Client) -> None:
    rng = random.Random(2)
    for _ in range(NUM_REQUESTS):
        check(http, *random_request(rng))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("first", [0, 100, 160])
def test_no_character_is_broken_whatever_bytes_the_model_gives(http: httpx.Client, seed: int, first: int) -> None:
    tokenizer = tiny_tokenizer()
    body = {
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": 60,
        "seed": seed,
        "temperature": 2,
        "allowed_token_ids": [*range(first, 256)],
        "logprobs": True,
    }
    choice = http.post("/v1/chat/completions", json=body).json()["choices"][0]
    said = b"".join(bytes(token["bytes"]) for token in choice["logprobs"]["content"])
    assert len(said) == 60, "one byte a token"
    assert {tokenizer.token_bytes(token_id)[0] for token_id in range(first, 256)}.issuperset(said)
    stream = values(http.post("/v1/chat/completions", json={**body, "stream": True}))
    deltas = pieces("/v1/chat/completions", stream)[0]
    assert "".join(deltas) == said.decode("utf-8", errors="replace") == choice["message"]["content"]


@pytest.mark.parametrize("path", PATHS)
def test_characters_of_many_bytes_come_whole(path: str) -> None:
    body: dict[str, Any] = {PATHS[path]: 400, "stream": True}
    asked = {"/v1/completions": {"prompt": "x"}, "/v1/responses": {"input": "x"}}
    body |= asked.get(path, {"messages": [{"role": "user", "content": "x"}]})
    with serving(scripted_llm(TORTURE)) as url, httpx.Client(base_url=url, timeout=30) as http:
        stream = values(http.post(path, json=body))
    deltas = pieces(path, stream)[0]
    assert "".join(deltas) == TORTURE
    assert not any("\N{REPLACEMENT CHARACTER}" in delta for delta in deltas)
