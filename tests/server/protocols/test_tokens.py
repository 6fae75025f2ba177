"""`/tokenize` and `/detokenize` over the real engine with a tiny random model."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.fakes import tiny_tokenizer


def test_text_goes_to_tokens_and_back(http: httpx.Client) -> None:
    text = "Zoë the \N{CAT FACE} <ref>"
    answer = http.post("/tokenize", json={"prompt": text, "return_token_strs": True}).json()
    assert answer["tokens"] == tiny_tokenizer().encode_text(text)
    assert (answer["count"], answer["max_model_len"]) == (len(answer["tokens"]), 512)
    assert len(answer["token_strs"]) == answer["count"]
    assert "the" in "".join(answer["token_strs"])
    assert http.post("/detokenize", json={"tokens": answer["tokens"]}).json() == {"prompt": text}


def test_control_tokens_in_a_text_are_characters(http: httpx.Client) -> None:
    tokens = http.post("/tokenize", json={"prompt": "<|im_start|><img>"}).json()["tokens"]
    assert tiny_tokenizer().hidden_ids.isdisjoint(tokens)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"add_generation_prompt": False},
        {"tools": [{"type": "function", "function": {"name": "look"}}]},
        {"messages": [{"role": "assistant", "content": "So"}], "continue_final_message": True},
    ],
)
def test_a_conversation_has_the_tokens_of_its_prompt(http: httpx.Client, fields: dict[str, Any]) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], **fields}
    answer = http.post("/tokenize", json=body).json()
    usage = http.post("/v1/chat/completions", json={**body, "max_tokens": 1}).json()["usage"]
    assert answer["count"] == usage["prompt_tokens"]
    shown = http.post("/detokenize", json={"tokens": answer["tokens"]}).json()["prompt"]
    assert shown.startswith("<|im_start|>")


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "prompt"),
        ("/tokenize", {"prompt": 1}, "prompt"),
        ("/tokenize", {"messages": [{"role": "user"}]}, "messages[0].content"),
        ("/tokenize", {"prompt": "a", "model": "other"}, "model"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]"),
        ("/detokenize", {"tokens": [3, 10**9]}, "tokens[1]"),
    ],
)
def test_tokens_refused(http: httpx.Client, path: str, body: dict[str, Any], param: str) -> None:
    response = http.post(path, json=body)
    assert response.status_code == (404 if param == "model" else 400)
    assert response.json()["error"]["param"] == param
