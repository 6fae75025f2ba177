"""From a request to the engine and back: fields, deadlines, the queue, usage."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from ternvl.config import EngineConfig
from tests.server.calling import BRIEF, CHAT, error_of, events, refusal
from tests.server.fakes import ScriptedEngine, scripted_llm, serving, tiny_llm
from tests.waiting import eventually


def test_fields_reach_the_engine() -> None:
    llm = scripted_llm("ok")
    engine = llm.engine
    assert isinstance(engine, ScriptedEngine)
    fields = {
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": -1,
        "min_p": 0.125,
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "repetition_penalty": 1.5,
        "min_tokens": 2,
        "max_tokens": 30,
        "stop": ["x"],
        "stop_token_ids": [3],
        "ignore_eos": True,
        "logprobs": True,
        "seed": 2**63 - 1,
        "n": 2,
        "cache_salt": "pepper",
        "priority": -2,
        "logit_bias": {"7": 2, "5": -1.5},
        "allowed_token_ids": [5, 7],
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
    }
    with serving(llm) as url:
        response = httpx.post(url + CHAT, json={**BRIEF, **fields, "logprobs": False})
        assert response.status_code == 200
    one, two = engine.requests
    assert (one.cache_salt, two.cache_salt) == ("pepper", "pepper")
    assert (one.sibling_of, two.sibling_of) == (None, one.id)
    assert (one.priority, two.priority) == (-2, -2)
    first, second = one.params, two.params
    assert (first.logit_bias, first.allowed_token_ids) == (((5, -1.5), (7, 2.0)), (5, 7))
    assert (first.include_stop_str_in_output, first.skip_special_tokens) == (True, False)
    assert (first.temperature, first.top_p, first.top_k, first.min_p) == (0.5, 0.25, 0, 0.125)
    assert (first.presence_penalty, first.frequency_penalty, first.repetition_penalty) == (1, -1, 1.5)
    assert (first.min_tokens, first.max_tokens, first.stop, first.stop_token_ids) == (2, 30, ("x",), (3,))
    assert (first.ignore_eos, first.logprobs) == (True, None)
    assert (first.seed, second.seed) == (2**63 - 1, 0)


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_takes_too_long_is_given_up(stream: bool) -> None:
    llm = scripted_llm("abc", endless=True)
    engine = llm.engine
    assert isinstance(engine, ScriptedEngine)
    with serving(llm, request_timeout=0.2) as url:
        response = httpx.post(url + CHAT, json={**BRIEF, "stream": stream, "n": 2}, timeout=30)
        eventually(lambda: len(engine.aborted) == 2)
    assert response.status_code == (200 if stream else 504)
    error = json.loads(events(response)[-1])["error"] if stream else error_of(response)
    assert (error["code"], error["type"]) == ("request_timeout", "server_error")


def test_a_queue_takes_all_answers_of_a_request_or_none() -> None:
    llm = scripted_llm("abc", endless=True, config=EngineConfig(max_model_len=512, max_queue=2))
    engine = llm.engine
    assert isinstance(engine, ScriptedEngine)
    with serving(llm) as url, ThreadPoolExecutor() as pool:
        patience = httpx.Timeout(30, read=3)
        asking = [pool.submit(httpx.post, url + CHAT, json={**BRIEF, "n": n}, timeout=patience) for n in (1, 1)]
        eventually(lambda: len(engine.requests) == 2)
        for stream in (False, True):
            refused = httpx.post(url + CHAT, json={**BRIEF, "n": 2, "stream": stream}, timeout=30)
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            assert (error_of(refused)["code"], error_of(refused)["type"]) == ("overloaded", "rate_limit_error")
            never = httpx.post(url + CHAT, json={**BRIEF, "n": 3, "stream": stream}, timeout=30)
            assert (never.status_code, error_of(never)["param"]) == (400, "n")
        assert len(engine.requests) == 2
        assert engine.aborted == []
        for future in asking:
            assert isinstance(future.exception(), httpx.ReadTimeout)
        eventually(lambda: len(engine.aborted) == 2)


@pytest.mark.parametrize("stream", [False, True])
def test_usage_tells_what_the_cache_spared(stream: bool) -> None:
    options = {"include_usage": True} if stream else None
    with serving(scripted_llm("abc", cached=(4, 16, 8))) as url:
        response = httpx.post(url + CHAT, json={**BRIEF, "n": 3, "stream": stream, "stream_options": options})
    usage = (json.loads(events(response)[-2]) if stream else response.json())["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 16


def test_a_stop_string_frees_the_request() -> None:
    llm = scripted_llm("abc", endless=True)
    engine = llm.engine
    assert isinstance(engine, ScriptedEngine)
    with serving(llm) as url:
        answer = httpx.post(url + CHAT, json={**BRIEF, "stop": "bca"}).json()["choices"][0]
        eventually(lambda: len(engine.aborted) == 1)
    assert (answer["message"]["content"], answer["finish_reason"]) == ("a", "stop")


def test_answers_without_a_seed_have_the_engines() -> None:
    def ask(seed: int) -> list[str]:
        with serving(tiny_llm(seed=seed)) as url:
            asked = {**BRIEF, "max_tokens": 16, "n": 2}
            return [c["message"]["content"] for c in httpx.post(url + CHAT, json=asked, timeout=30).json()["choices"]]

    assert ask(1) == ask(1) != ask(2)
    assert len(set(ask(1))) == 2


def test_more_answer_tokens_than_a_request_may_have() -> None:
    with serving(tiny_llm(), max_answer_tokens=100) as url, httpx.Client(base_url=url, timeout=30) as http:
        error = refusal(http, n=11, max_tokens=10)
        assert (error["param"], error["code"]) == ("n", "too_many_answer_tokens")
        assert "110" in error["message"]
        assert "100" in error["message"]
        assert refusal(http, n=2, max_tokens=None)["code"] == "too_many_answer_tokens"
        assert http.post(CHAT, json={**BRIEF, "n": 10, "max_tokens": 10}).status_code == 200
