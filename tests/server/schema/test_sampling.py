"""Fields that change the draw, the text or the order of answers, as a client sees them."""

from __future__ import annotations

import concurrent.futures
import time
from typing import Any

import httpx
import pytest

from ternvl.errors import RequestError
from ternvl.params import SamplingParams
from tests.fakes import tiny_tokenizer
from tests.server.calling import BRIEF, CHAT, refusal
from tests.server.fakes import scripted_llm, serving, tiny_llm

HI: dict[str, Any] = {**BRIEF, "max_tokens": 8}


def ask(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    response = http.post(CHAT, json={**HI, **fields})
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


def test_a_bias_of_100_decides_and_of_minus_100_bans(http: httpx.Client) -> None:
    forced = ask(http, logit_bias={str(tiny_tokenizer().encode_text("Q")[0]): 100})
    assert forced["message"]["content"] == "Q" * 8
    free = ask(http, temperature=0, max_tokens=1, logprobs=True, top_logprobs=2)["logprobs"]["content"][0]
    best = tiny_tokenizer().full.encode(free["token"], add_special_tokens=False).ids
    banned = ask(http, temperature=0, max_tokens=1, logprobs=True, logit_bias={str(best[0]): -100})
    assert banned["logprobs"]["content"][0]["token"] == free["top_logprobs"][1]["token"]


def test_only_allowed_tokens_are_drawn(http: httpx.Client) -> None:
    allowed = tiny_tokenizer().encode_text("xyz")
    text = ask(http, allowed_token_ids=allowed, max_tokens=30, temperature=2)["message"]["content"]
    assert set(text) <= set("xyz")
    assert len(text) == 30


@pytest.mark.parametrize("field", ["logit_bias", "allowed_token_ids", "stop_token_ids"])
def test_tokens_out_of_the_vocabulary(http: httpx.Client, field: str) -> None:
    size = tiny_tokenizer().vocab_size
    error = refusal(http, **{field: {str(size): 1} if field == "logit_bias" else [size]})
    assert error["param"] == (f"logit_bias.{size}" if field == "logit_bias" else f"{field}[0]")
    assert str(size - 1) in error["message"]


def test_a_request_that_leaves_no_token_is_refused(http: httpx.Client) -> None:
    stops = list(tiny_tokenizer().stop_ids)
    error = refusal(http, allowed_token_ids=stops, min_tokens=1)
    assert error["param"] == "allowed_token_ids"
    assert ask(http, allowed_token_ids=stops)["finish_reason"] == "stop"


def test_special_tokens_show_where_they_are_asked_for(http: httpx.Client) -> None:
    special = tiny_tokenizer().control_id("<img>")
    fields = {"logit_bias": {str(special): 100}, "max_tokens": 2}
    assert ask(http, **fields)["message"]["content"] == ""
    assert ask(http, **fields, skip_special_tokens=False)["message"]["content"] == "<img><img>"


@pytest.mark.parametrize("stream", [False, True])
def test_the_stop_string_shows_where_it_is_asked_for(stream: bool) -> None:
    with serving(scripted_llm("one two three")) as url, httpx.Client(base_url=url) as http:
        fields = {"stop": ["two", "three"], "max_tokens": 64}
        assert ask(http, **fields)["message"]["content"] == "one "
        with_it = {**fields, "include_stop_str_in_output": True}
        if stream:
            events = http.post(CHAT, json={**HI, **with_it, "stream": True}).text.split("\n\n")
            pieces = [httpx.Response(200, content=event[6:]).json() for event in events[:-2]]
            text = "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces)
        else:
            text = ask(http, **with_it)["message"]["content"]
        assert text == "one two"


def test_a_lower_priority_number_goes_first() -> None:
    llm = tiny_llm(max_num_seqs=1)
    requests = [
        {**HI, "max_tokens": 40, "priority": priority, "ignore_eos": True, "stream": True} for priority in (0, 5, 1, 3)
    ]
    order: list[int] = []
    with serving(llm) as url, httpx.Client(base_url=url, timeout=30) as http:

        def read(body: dict[str, Any]) -> None:
            assert http.post(CHAT, json=body).status_code == 200
            order.append(body["priority"])

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            first = pool.submit(read, {**requests[0], "max_tokens": 400})
            while llm.engine.stats().num_running == 0:
                time.sleep(0.001)
            others = [pool.submit(read, body) for body in requests[1:]]
            for each in [first, *others]:
                each.result()
    assert order == [0, 1, 3, 5]


def test_a_stop_string_has_a_greatest_length(http: httpx.Client) -> None:
    assert (
        "stop has 1001 characters, more than the 1000 that are allowed"
        in http.post(CHAT, json={**HI, "stop": "x" * 1001}).json()["error"]["message"]
    )
    with pytest.raises(RequestError, match="stop has a string of 1001 characters; it may have 1000"):
        SamplingParams(stop=("x" * 1001,))
    assert SamplingParams(stop="x" * 1000).stop == ("x" * 1000,)
