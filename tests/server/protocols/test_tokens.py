"""`/tokenize` and `/detokenize` over the real engine with a tiny random model."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.fakes import tiny_tokenizer
from tests.server.images import data_uri, png


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


def test_a_rendered_prompt_is_the_one_that_is_answered(http: httpx.Client) -> None:
    picture = {"type": "image_url", "image_url": {"url": data_uri(png("red", (56, 28)))}}
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, picture]}]}
    rendered = http.post("/v1/chat/completions/render", json=body).raise_for_status().json()
    assert rendered["token_ids"] == http.post("/tokenize", json=body).json()["tokens"]
    answered = http.post("/v1/chat/completions", json={**body, "max_tokens": 1}).json()
    assert answered["usage"]["prompt_tokens"] == len(rendered["token_ids"])
    (place,) = rendered["features"]["mm_placeholders"]["image"]
    assert place["length"] == answered["usage"]["prompt_tokens_details"]["image_tokens"]
    context = rendered["token_ids"][place["offset"] : place["offset"] + place["length"]]
    assert len(set(context)) == 1
    assert rendered["token_ids"].count(context[0]) == place["length"]
    assert (rendered["model"], rendered["lora_name"], rendered["lora_id"]) == (answered["model"], None, None)


def test_identifiers_name_images_and_salts_without_showing_them(http: httpx.Client) -> None:
    def rendered(colour: str, **fields: str) -> tuple[str, str | None]:
        picture = {"type": "image_url", "image_url": {"url": data_uri(png(colour))}}
        body = {"messages": [{"role": "user", "content": [picture]}], **fields}
        answer = http.post("/v1/chat/completions/render", json=body).raise_for_status().json()
        return answer["features"]["mm_hashes"]["image"][0], answer["cache_salt"]

    plain, salted, other = rendered("red"), rendered("red", cache_salt="tenant"), rendered("blue")
    assert plain == rendered("red")
    assert len({plain[0], salted[0], other[0]}) == 3
    assert plain[1] is None
    assert salted[1] not in (None, "tenant")
    assert salted == rendered("red", cache_salt="tenant")


def test_a_text_has_no_features_and_a_wrong_request_an_error(http: httpx.Client) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    answer = http.post("/v1/chat/completions/render", json={"messages": messages}).json()
    assert (answer["features"], answer["cache_salt"]) == (None, None)
    assert http.post("/v1/chat/completions/render", json={"messages": []}).status_code == 400
    absent = http.post("/v1/chat/completions/render", json={"messages": messages, "model": "absent"})
    assert (absent.status_code, absent.json()["error"]["code"]) == (404, "model_not_found")


def test_rendered_completions_are_the_prompts_that_are_answered(http: httpx.Client) -> None:
    def rendered(prompt: Any, **fields: Any) -> list[dict[str, Any]]:
        body = {"prompt": prompt, **fields}
        answers = http.post("/v1/completions/render", json=body).raise_for_status().json()
        usage = http.post("/v1/completions", json={**body, "max_tokens": 1}).json()["usage"]
        assert usage["prompt_tokens"] == sum(len(each["token_ids"]) for each in answers)
        return list(answers)

    tokens = tiny_tokenizer().encode_text("the cat")
    (text,), (ids,) = rendered("the cat"), rendered(tokens)
    assert text["token_ids"] == ids["token_ids"] == tokens
    assert text["request_id"].startswith("cmpl-")
    assert (text["features"], text["lora_name"], text["lora_id"], text["cache_salt"]) == (None, None, None, None)
    assert [each["token_ids"] for each in rendered(["the cat", "the"])] == [tokens, tiny_tokenizer().encode_text("the")]
    assert [each["token_ids"] for each in rendered([tokens, [5]])] == [tokens, [5]]
    salts = {each["cache_salt"] for each in rendered(["a", "b"], cache_salt="tenant")}
    chat = {"messages": [{"role": "user", "content": "Hi"}], "cache_salt": "tenant"}
    assert salts == {http.post("/v1/chat/completions/render", json=chat).json()["cache_salt"]}


@pytest.mark.parametrize(
    ("fields", "param"),
    [({}, "prompt"), ({"prompt": [[10**9]]}, "prompt"), ({"prompt": "a " * 600}, "prompt"), ({"prompt": [[]]}, None)],
)
def test_completions_that_could_not_be_answered_are_not_rendered(
    http: httpx.Client, fields: dict[str, Any], param: str | None
) -> None:
    rendered = http.post("/v1/completions/render", json=fields)
    assert rendered.status_code == 400
    assert param is None or rendered.json()["error"]["param"] == param
