"""`/v1/completions` over the real engine with a tiny random model."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from openai import BadRequestError, OpenAI

from ternvl.params import SamplingParams
from ternvl.types import Prompt
from tests.fakes import tiny_tokenizer
from tests.server.fakes import tiny_llm

TEXT = "Once the"
IDS = tiny_tokenizer().encode_text(TEXT)


def offline(ids: list[int], **params: Any) -> str:
    return tiny_llm().generate(Prompt(tuple(ids)), SamplingParams(**params))[0].text


@pytest.mark.parametrize("prompt", [TEXT, IDS], ids=["text", "ids"])
def test_the_prompt_is_gone_on_with_as_it_is(client: OpenAI, prompt: Any) -> None:
    answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=9, temperature=0)
    choice = answer.choices[0]
    assert choice.text == offline(IDS, temperature=0, max_tokens=9)
    assert (answer.object, answer.model, answer.id[:5]) == ("text_completion", "tiny", "cmpl-")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(IDS)
    assert answer.usage.total_tokens == len(IDS) + answer.usage.completion_tokens


def test_without_a_limit_the_answer_has_16_tokens(client: OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt=TEXT, extra_body={"ignore_eos": True})
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


@pytest.mark.parametrize("prompts", [["a", "b b"], [[70], [71, 3, 71]]], ids=["texts", "ids"])
@pytest.mark.parametrize("stream", [False, True])
def test_several_prompts_with_several_answers_each(client: OpenAI, prompts: Any, stream: bool) -> None:
    asked: dict[str, Any] = {"model": "tiny", "max_tokens": 6, "seed": 4, "temperature": 1.5}
    alone = [
        client.completions.create(**asked, prompt=prompt, n=2).choices[index].text
        for prompt in prompts
        for index in range(2)
    ]
    texts = [""] * 4
    if stream:
        for chunk in client.completions.create(**asked, prompt=prompts, n=2, stream=True):
            for choice in chunk.choices:
                texts[choice.index] += choice.text
    else:
        answer = client.completions.create(**asked, prompt=prompts, n=2)
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        texts = [choice.text for choice in answer.choices]
    assert texts == alone


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", [TEXT, IDS], ids=["text", "ids"])
def test_echo(client: OpenAI, prompt: Any, stream: bool) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": prompt, "max_tokens": 5, "seed": 2, "n": 2}
    plain = [choice.text for choice in client.completions.create(**asked).choices]
    if stream:
        texts = ["", ""]
        for chunk in client.completions.create(**asked, echo=True, stream=True):
            for choice in chunk.choices:
                texts[choice.index] += choice.text
    else:
        texts = [choice.text for choice in client.completions.create(**asked, echo=True).choices]
    assert texts == [TEXT + text for text in plain]


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_spell_the_answer(client: OpenAI, stream: bool) -> None:
    allowed = tiny_tokenizer().encode_text("abc the")
    asked: dict[str, Any] = {"model": "tiny", "prompt": TEXT, "max_tokens": 7, "seed": 1, "logprobs": 2}
    asked["extra_body"] = {"allowed_token_ids": allowed}
    answers = client.completions.create(**asked, stream=True) if stream else [client.completions.create(**asked)]
    choices = [choice for answer in answers for choice in answer.choices]
    text = "".join(choice.text for choice in choices)
    listed = [choice.logprobs for choice in choices if choice.logprobs]
    tokens = [token for each in listed for token in each.tokens or []]
    offsets = [offset for each in listed for offset in each.text_offset or []]
    values = [value for each in listed for value in each.token_logprobs or []]
    tops = [top for each in listed for top in each.top_logprobs or []]
    assert "".join(tokens) == text
    assert [text[offset:].startswith(token) for offset, token in zip(offsets, tokens, strict=True)] == [True] * 7
    assert all(len(top) in (2, 3) and max(top.values()) <= 0 for top in tops)
    assert all(top[token] == value for token, value, top in zip(tokens, values, tops, strict=True))


def test_without_alternatives_the_drawn_token_is_listed_alone(client: OpenAI) -> None:
    listed = client.completions.create(model="tiny", prompt=TEXT, max_tokens=3, seed=1, logprobs=0).choices[0].logprobs
    assert listed is not None
    assert listed.tokens is not None
    assert listed.token_logprobs is not None
    pairs = zip(listed.tokens, listed.token_logprobs, strict=True)
    assert listed.top_logprobs == [{token: value} for token, value in pairs]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_each_chunk_has_the_usage_so_far_where_it_is_asked_for(http: httpx.Client, path: str) -> None:
    body: dict[str, Any] = (
        {"prompt": "a"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "a"}]}
    )
    body |= {"max_tokens": 5, "seed": 1, "ignore_eos": True, "stream": True}
    for options in ({"continuous_usage_stats": True}, {"include_usage": True, "continuous_usage_stats": True}):
        text = http.post(path, json={**body, "stream_options": options}).text
        chunks = [json.loads(event.removeprefix("data: ")) for event in text.split("\n\n")[:-2]]
        if "include_usage" not in options:  # as in vLLM
            assert all("usage" not in chunk for chunk in chunks)
            continue
        counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
        assert counts == sorted(counts)
        assert (counts[0] > 0, counts[-1]) == (True, 5)
        assert all(chunk["usage"]["prompt_tokens"] == chunks[-1]["usage"]["prompt_tokens"] for chunk in chunks)


def test_usage_of_a_stream_comes_last(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": ["a", "b"], "max_tokens": 5, "seed": 1}
    usage = client.completions.create(**asked).usage
    chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks[:-1])
    assert (chunks[-1].choices, chunks[-1].usage) == ([], usage)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt[1]"),
        ({"prompt": [1, "a"]}, "prompt[1]"),
        ({"prompt": [[1], []]}, "prompt[1]"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [10**6]}, "prompt"),
        ({"prompt": "a " * 600}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1, "echo": True}, "max_tokens"),
        ({"max_tokens": 0, "echo": True, "min_tokens": 1}, "min_tokens"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"prompt_logprobs": True}, "prompt_logprobs"),
        ({"prompt_logprobs": 0, "stream": True}, "prompt_logprobs"),
        ({"stream_options": {}}, "stream_options"),
        ({"model": "gpt-4"}, "model"),
    ],
)
def test_a_refusal_names_the_field(http: httpx.Client, fields: dict[str, Any], param: str) -> None:
    response = http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1, **fields})
    error = response.json()["error"]
    assert response.status_code == (404 if param == "model" else 400)
    assert error["param"] == param
    assert error["message"]


def test_the_client_raises_its_own_error(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="suffix"):
        client.completions.create(model="tiny", prompt="a", suffix="b")
