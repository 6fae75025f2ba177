"""Log probabilities of prompts over HTTP: `echo` with `logprobs`, and vLLM's `prompt_logprobs`."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import httpx
import pytest
from openai import OpenAI

from ternvl.params import SamplingParams
from ternvl.types import Prompt, PromptLogprobs
from tests.fakes import tiny_tokenizer
from tests.server.calling import BRIEF, CHAT, error_of
from tests.server.fakes import serving, tiny_llm
from tests.server.images import data_uri, png

COMPLETIONS = "/v1/completions"
TOKENIZER = tiny_tokenizer()
TEXTS = ["Once the", "é \N{CAT FACE} the er"]
IDS = [TOKENIZER.encode_text(text) for text in TEXTS]
PROMPTS: dict[str, Any] = {"text": TEXTS[0], "texts": TEXTS, "ids": IDS[0], "lists of ids": IDS}
IM_START, IM_END = TOKENIZER.control_id("<|im_start|>"), TOKENIZER.control_id("<|im_end|>")


def offline(ids: list[int], num_top: int) -> PromptLogprobs:
    params = SamplingParams(prompt_logprobs=num_top, max_tokens=0)
    found = tiny_llm().generate(Prompt(tuple(ids)), params)[0].prompt_logprobs
    assert found is not None
    return found


def ask(http: httpx.Client, path: str = COMPLETIONS, **fields: Any) -> dict[str, Any]:
    response = http.post(path, json=fields)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def streamed(http: httpx.Client, **fields: Any) -> list[dict[str, Any]]:
    """The choices of a stream, put together."""
    choices: dict[int, dict[str, Any]] = defaultdict(lambda: {"text": "", "logprobs": defaultdict(list)})
    events = http.post(COMPLETIONS, json={**fields, "stream": True}).text.split("\n\n")[:-2]
    for event in events:
        for piece in json.loads(event.removeprefix("data: "))["choices"]:
            choice = choices[piece["index"]]
            choice |= {"index": piece["index"], "finish_reason": piece["finish_reason"]}
            choice["text"] += piece["text"]
            for name, values in piece["logprobs"].items():
                choice["logprobs"][name] += values
    return [choices[index] for index in sorted(choices)]


def check_listed(choice: dict[str, Any], ids: list[int], num_top: int, hidden: tuple[str, ...] = ()) -> None:
    """The lists begin with the whole prompt, and fit the text, in which `hidden` tokens have no place."""
    listed, values = choice["logprobs"], offline(ids, num_top)
    assert listed["token_logprobs"][0] is listed["top_logprobs"][0] is None
    assert listed["token_logprobs"][1 : len(ids)] == pytest.approx(
        [each.logprob for each in values[1:] if each], abs=1e-5
    )
    assert len({len(items) for items in listed.values()}) == 1
    for token, value, top in list(zip(listed["tokens"], listed["token_logprobs"], listed["top_logprobs"], strict=True))[
        1:
    ]:
        assert top[token] == value
        assert next(iter(top)) == token
        assert len(top) in (num_top, num_top + 1)
    pairs = zip(listed["token_logprobs"][1 : len(ids)], listed["top_logprobs"][1 : len(ids)], strict=True)
    if num_top:  # lm-eval calls a token greedy if no other one is likelier
        assert [value == max(top.values()) for value, top in pairs] == [each.rank == 1 for each in values[1:] if each]
    text, offsets = choice["text"], listed["text_offset"]
    assert offsets == sorted(offsets)
    assert all(
        text[offset:].startswith(token)
        for token, offset in zip(listed["tokens"], offsets, strict=True)
        if not token.startswith("bytes:") and token not in hidden
    )


@pytest.mark.parametrize("max_tokens", [0, 4])
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_echo_with_logprobs(http: httpx.Client, prompt: Any, max_tokens: int) -> None:
    asked = {"prompt": prompt, "echo": True, "logprobs": 2, "max_tokens": max_tokens, "n": 2, "seed": 5}
    asked |= {"ignore_eos": True, "skip_special_tokens": False}
    answer = ask(http, **asked)
    choices = answer["choices"]
    assert streamed(http, **asked) == choices
    assert len(choices) == (4 if prompt in (TEXTS, IDS) else 2)
    assert answer["usage"]["completion_tokens"] == max_tokens * len(choices)
    for choice in choices:
        text, ids = TEXTS[choice["index"] // 2], IDS[choice["index"] // 2]
        check_listed(choice, ids, 2)
        assert len(choice["logprobs"]["tokens"]) == len(ids) + max_tokens
        assert choice["text"].startswith(text)
        assert (choice["text"] == text) == (max_tokens == 0)
        assert choice["finish_reason"] == "length"
        assert "prompt_logprobs" not in choice
    if max_tokens:
        plain = ask(http, **{**asked, "echo": False})["choices"]
        for choice, other in zip(choices, plain, strict=True):
            size = len(IDS[choice["index"] // 2])
            assert choice["logprobs"]["token_logprobs"][size:] == pytest.approx(other["logprobs"]["token_logprobs"])
            assert choice["logprobs"]["tokens"][size:] == other["logprobs"]["tokens"]


def test_the_openai_client_reads_them(client: OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt=TEXTS[0], echo=True, logprobs=1, max_tokens=0)
    listed = answer.choices[0].logprobs
    assert listed is not None
    assert "".join(listed.tokens or []) == answer.choices[0].text == TEXTS[0]


@pytest.mark.parametrize("stream", [False, True])
def test_echo_of_a_prompt_without_an_answer(http: httpx.Client, stream: bool) -> None:
    asked = {"prompt": TEXTS, "echo": True, "max_tokens": 0}
    if stream:
        text = http.post(COMPLETIONS, json={**asked, "stream": True}).text
        choices = [each for event in text.split("\n\n")[:-2] for each in json.loads(event[6:])["choices"]]
    else:
        choices = ask(http, **asked)["choices"]
    found = [(each["text"], each["logprobs"], each["finish_reason"]) for each in choices]
    assert sorted(found) == sorted((text, None, "length") for text in TEXTS)


def test_parts_of_characters_have_names_of_their_own(http: httpx.Client) -> None:
    listed = ask(http, prompt=TEXTS[1], echo=True, logprobs=0, max_tokens=0)["choices"][0]["logprobs"]
    assert listed["tokens"][:3] == ["bytes:\\xc3", "bytes:\\xa9", " "]
    assert listed["text_offset"][:3] == [0, 0, 1]
    cat = listed["tokens"].index("bytes:\\xf0")
    assert listed["text_offset"][cat : cat + 5] == [2, 2, 2, 2, 3]
    assert [len(top) for top in listed["top_logprobs"][1:]] == [1] * (len(IDS[1]) - 1)


@pytest.mark.parametrize("shown", [False, True])
def test_control_tokens_of_prompt_and_answer_are_listed(http: httpx.Client, shown: bool) -> None:
    ids = [IM_START, *IDS[0], IM_END]
    asked = {"prompt": ids, "echo": True, "logprobs": 1, "max_tokens": 3, "skip_special_tokens": not shown}
    image = TOKENIZER.control_id("<img>")
    choice = ask(http, **asked, allowed_token_ids=[image])["choices"][0]
    check_listed(choice, ids, 1, () if shown else ("<|im_start|>", "<|im_end|>", "<img>"))
    assert choice["logprobs"]["tokens"] == ["<|im_start|>", *spelled(IDS[0]), "<|im_end|>", *["<img>"] * 3]
    assert choice["text"] == ("<|im_start|>Once the<|im_end|><img><img><img>" if shown else "Once the")


def spelled(ids: list[int]) -> list[str]:
    return [TOKENIZER.token_bytes(token_id).decode() for token_id in ids]


@pytest.mark.parametrize("echo", [False, True])
def test_the_token_that_stops_an_answer_is_listed(http: httpx.Client, echo: bool) -> None:
    """Clients count on one token after the prompt: lm-eval asks for one and drops it."""
    asked = {"prompt": IDS[0], "echo": echo, "logprobs": 1, "max_tokens": 1, "allowed_token_ids": [IM_END]}
    answer = ask(http, **asked)
    choice = answer["choices"][0]
    assert (choice["finish_reason"], choice["text"]) == ("stop", TEXTS[0] if echo else "")
    assert choice["logprobs"]["tokens"] == [*(spelled(IDS[0]) if echo else []), "<|im_end|>"]
    assert choice["logprobs"]["token_logprobs"][-1] == 0
    assert choice["logprobs"]["text_offset"][-1] == len(choice["text"])
    assert answer["usage"]["completion_tokens"] == 0
    assert streamed(http, **asked) == [choice]
    fields = {**BRIEF, "logprobs": True, "allowed_token_ids": [IM_END]}
    assert all(not each["logprobs"]["content"] for each in ask(http, CHAT, **fields)["choices"] if each["logprobs"])


def check_vllm(found: list[Any], ids: list[int], num_top: int) -> None:
    """Lists of vLLM's form, with the token itself first."""
    for token_id, value, want in zip(ids, found, offline(ids, num_top), strict=True):
        if want is None:
            assert value is None
            continue
        first, *_ = value
        assert first == str(token_id)
        assert value[first] == {
            "logprob": pytest.approx(want.logprob, abs=1e-5),
            "rank": want.rank,
            "decoded_token": TOKENIZER.token_bytes(token_id).decode(errors="replace"),
        }
        assert {int(each) for each in value} == {token_id, *(each for each, _ in want.top)}
        assert {value[str(each)]["rank"] for each, _ in want.top} == set(range(1, num_top + 1))


@pytest.mark.parametrize("num_top", [0, 3])
def test_prompt_logprobs_of_completions(http: httpx.Client, num_top: int) -> None:
    answer = ask(http, prompt=TEXTS, prompt_logprobs=num_top, max_tokens=1, n=2, logprobs=1)
    for choice in answer["choices"]:
        check_vllm(choice["prompt_logprobs"], IDS[choice["index"] // 2], num_top)
        assert len(choice["logprobs"]["tokens"]) == 1
    only = ask(http, prompt=IDS[0], prompt_logprobs=num_top, max_tokens=0)["choices"][0]
    check_vllm(only["prompt_logprobs"], IDS[0], num_top)
    assert (only["text"], only["logprobs"], only["finish_reason"]) == ("", None, "length")
    drawn = {"max_tokens": 1, "temperature": 0}  # random weights may draw a token that the text does not show
    both = ask(http, prompt=IDS[0], prompt_logprobs=num_top, **drawn, echo=True, logprobs=1)["choices"][0]
    check_vllm(both["prompt_logprobs"], IDS[0], num_top)
    check_listed(both, IDS[0], 1)


def test_prompt_logprobs_of_a_chat(http: httpx.Client) -> None:
    messages = [{"role": "user", "content": TEXTS[1]}]
    ids = ask(http, "/tokenize", messages=messages)["tokens"]
    answer = ask(http, CHAT, messages=messages, prompt_logprobs=2, max_tokens=2, n=2)
    check_vllm(answer["prompt_logprobs"], ids, 2)
    assert len(answer["choices"]) == 2
    assert "prompt_logprobs" not in ask(http, CHAT, messages=messages, max_tokens=2)


def test_tokens_of_an_image_have_none(http: httpx.Client) -> None:
    parts = [{"type": "image_url", "image_url": {"url": data_uri(png())}}, {"type": "text", "text": "What?"}]
    messages = [{"role": "user", "content": parts}]
    ids = ask(http, "/tokenize", messages=messages)["tokens"]
    found = ask(http, CHAT, messages=messages, prompt_logprobs=0, max_tokens=1)["prompt_logprobs"]
    nothing = [position for position, value in enumerate(found) if value is None]
    context_id = TOKENIZER.control_id("<IMG_CONTEXT>")
    assert nothing == [0, *(position for position, token_id in enumerate(ids) if token_id == context_id)]
    assert len(nothing) > 1


@pytest.mark.parametrize(
    ("path", "fields", "param", "message"),
    [
        (COMPLETIONS, {"stream": True, "prompt_logprobs": 1}, "prompt_logprobs", "not supported when stream is true"),
        (COMPLETIONS, {"max_tokens": 0}, "max_tokens", "only allowed together with echo or prompt_logprobs"),
        (CHAT, {"stream": True, "prompt_logprobs": 1}, "prompt_logprobs", "not supported when stream is true"),
        (CHAT, {"prompt_logprobs": 21}, "prompt_logprobs", "less than or equal to 20"),
        (CHAT, {"max_tokens": 0, "prompt_logprobs": 1}, "max_tokens", "greater than or equal to 1"),
        ("/v1/responses", {"prompt_logprobs": 1}, "prompt_logprobs", "not supported here"),
        ("/v1/messages", {"prompt_logprobs": 1}, "prompt_logprobs", "not supported here"),
    ],
)
def test_refusals(http: httpx.Client, path: str, fields: dict[str, Any], param: str, message: str) -> None:
    bodies = {COMPLETIONS: {"prompt": "a"}, "/v1/responses": {"input": "a"}}
    response = http.post(path, json={**bodies.get(path, BRIEF), **fields})
    assert response.status_code == 400, response.text
    found = response.json()["error"]
    assert message in found["message"]
    assert found.get("param", param) == param


def test_a_request_lists_so_many_tokens_at_most() -> None:
    with serving(tiny_llm(), max_answer_tokens=50) as url, httpx.Client(base_url=url, timeout=30) as http:
        fields = {"prompt": "abcd " * 3, "max_tokens": 1, "echo": True, "n": 3}
        assert http.post(COMPLETIONS, json={**fields, "n": 2, "logprobs": 0}).status_code == 200
        error = error_of(http.post(COMPLETIONS, json={**fields, "n": 4, "logprobs": 0}))
        assert (error["param"], error["code"]) == ("prompt", "too_many_answer_tokens")
        assert "60 tokens of prompts, but one request may have 50" in error["message"]
        assert http.post(COMPLETIONS, json={**fields, "n": 4}).status_code == 200
