"""What lies around an answer: bad bodies, limits, keys, failures, clients that leave."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from openai import OpenAI

from benchmarks.disconnects import attack, held
from ternvl.config import EngineConfig, ServerConfig
from ternvl.engine.engine import Engine
from ternvl.errors import OverloadedError, TernvlError, UnavailableError
from ternvl.prompt import build
from ternvl.server import bind, run
from tests.server.fakes import ScriptedEngine, scripted_llm, serving, tiny_llm

CHAT = "/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
JSON = {"Content-Type": "application/json"}
CALL = '<tool_call>\n{"name": "look", "arguments": {"at": {"x": [1]}}}\n</tool_call>'
TOOLS: list[Any] = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error of an answer, which has exactly OpenAI's keys."""
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    return dict(body["error"])


def events(response: httpx.Response) -> list[str]:
    assert response.headers["content-type"].startswith("text/event-stream")
    pieces = response.text.split("\n\n")
    assert pieces.pop() == ""
    assert all(piece.startswith("data: ") for piece in pieces)
    return [piece.removeprefix("data: ") for piece in pieces]


def until(condition: Callable[[], bool]) -> None:
    """Waits for what another thread does."""
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("it never happened")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not JSON"),
        (b"{", "line 1, column 2"),
        (b'{"messages": NaN}', "NaN"),
        (b'{"temperature": -Infinity}', "-Infinity"),
        (b'\xff{"messages": []}', "byte 0"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "too many digits"),
        (b'{"messages": ' + b"[" * 100 + b"]" * 100 + b"}", "64 levels"),
        (b"[" * 200_000, "64 levels"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "surrogate"),
        (b"[]", "JSON object"),
        (b"null", "JSON object"),
    ],
)
def test_a_body_that_cannot_be_read(http: httpx.Client, body: bytes, says: str) -> None:
    response = http.post(CHAT, content=body, headers=JSON)
    assert response.status_code == 400
    assert says in error_of(response)["message"]
    assert http.post(CHAT, json=HI).status_code == 200


def test_escaped_characters_are_read(http: httpx.Client) -> None:
    body = b'{"max_tokens": 1, "messages": [{"role": "user", "content": "\\ud83e\\udda4"}]}'
    assert http.post(CHAT, content=body, headers=JSON).status_code == 200


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_only_json_is_taken(http: httpx.Client, content_type: str) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    response = http.post(CHAT, content=json.dumps(HI), headers=headers)
    assert response.status_code == 415
    assert "application/json" in error_of(response)["message"]


def test_content_type_and_encoding(http: httpx.Client) -> None:
    content = json.dumps(HI)
    good = http.post(CHAT, content=content, headers={"Content-Type": "Application/JSON; charset=utf-8"})
    assert good.status_code == 200
    packed = http.post(CHAT, content=content, headers={**JSON, "Content-Encoding": "gzip"})
    assert packed.status_code == 415


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_too_large(http: httpx.Client, chunked: bool) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(20):
            yield b" " * 100_000

    response = http.post(CHAT, content=pieces() if chunked else b" " * 2_000_000, headers=JSON)
    assert response.status_code == 413
    assert "1000000 bytes" in error_of(response)["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", CHAT, 405), ("POST", "/v1/models", 405), ("GET", "/nope", 404), ("POST", "/chat/completions", 404)],
)
def test_unknown_paths_and_methods(http: httpx.Client, method: str, path: str, status: int) -> None:
    response = http.request(method, path)
    assert response.status_code == status
    assert path in error_of(response)["message"]
    if status == 405:
        assert response.headers["allow"]


def test_health_and_version(http: httpx.Client) -> None:
    assert http.get("/health").json() == {"status": "ok"}
    assert http.get("/version").json()["version"]


@pytest.mark.parametrize(("fields", "param"), [({"temperature": 3}, "temperature"), ({"messages": "hi"}, "messages")])
def test_a_refusal_names_the_field(http: httpx.Client, fields: dict[str, Any], param: str) -> None:
    for stream in (False, True):
        response = http.post(CHAT, json={**HI, **fields, "stream": stream})
        assert response.status_code == 400
        error = error_of(response)
        assert (error["param"], error["type"]) == (param, "invalid_request_error")


@pytest.mark.parametrize("stream", [False, True])
def test_unknown_fields_are_named_in_a_header(http: httpx.Client, stream: bool) -> None:
    response = http.post(CHAT, json={**HI, "colour": 1, "stream": stream})
    assert response.status_code == 200
    assert response.headers["x-ternvl-ignored-fields"] == "colour"
    assert "x-ternvl-ignored-fields" not in http.post(CHAT, json=HI).headers


def test_strict_refuses_unknown_fields() -> None:
    with serving(tiny_llm(), strict=True) as url:
        response = httpx.post(url + CHAT, json={**HI, "colour": 1})
        assert response.status_code == 400
        assert error_of(response)["param"] == "colour"
        assert httpx.post(url + CHAT, json=HI).status_code == 200


def test_served_names() -> None:
    with serving(tiny_llm(), served_model_name=("one", "two")) as url:
        assert [model["id"] for model in httpx.get(f"{url}/v1/models").json()["data"]] == ["one", "two"]
        assert httpx.post(url + CHAT, json={**HI, "model": "two"}).json()["model"] == "two"
        assert httpx.post(url + CHAT, json={**HI, "model": "tiny"}).status_code == 404


def test_the_api_key() -> None:
    with serving(tiny_llm(), api_key="sécret", allowed_origins=("https://app.example",)) as url:
        assert httpx.get(f"{url}/health").status_code == 200
        for key in (None, "wrong", "sécre"):
            headers = {} if key is None else {"Authorization": f"Bearer {key}".encode()}
            response = httpx.post(url + CHAT, json=HI, headers=headers)
            assert response.status_code == 401
            assert error_of(response)["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"
        good = {"Authorization": "Bearer sécret".encode(), "Origin": "https://app.example"}
        answer = httpx.post(url + CHAT, json=HI, headers=good)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
        assert httpx.options(url + CHAT, headers=asked).status_code == 200


def test_no_origin_is_allowed_by_default(http: httpx.Client) -> None:
    response = http.post(CHAT, json=HI, headers={"Origin": "https://app.example"})
    assert "access-control-allow-origin" not in response.headers


def test_tool_calls_through_the_client() -> None:
    with serving(scripted_llm("Look: " + CALL)) as url, OpenAI(base_url=f"{url}/v1", api_key="-") as client:
        asked: dict[str, Any] = {"model": "tiny", "messages": HI["messages"], "tools": TOOLS}
        whole = client.chat.completions.create(**asked).choices[0]
        with client.chat.completions.stream(**asked) as stream:
            streamed = stream.get_final_completion().choices[0]
        untold = client.chat.completions.create(**asked, tool_choice="none").choices[0]
    for choice in (whole, streamed):
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Look: ")
        assert choice.message.tool_calls
        (call,) = choice.message.tool_calls
        assert call.type == "function"
        assert (call.function.name, json.loads(call.function.arguments)) == ("look", {"at": {"x": [1]}})
        assert call.id
    assert (untold.finish_reason, untold.message.content) == ("stop", "Look: " + CALL)


def test_content_is_null_where_only_calls_are() -> None:
    with serving(scripted_llm(CALL)) as url:
        message = httpx.post(url + CHAT, json={**HI, "tools": TOOLS}).json()["choices"][0]["message"]
        chunks = [json.loads(event) for event in events(httpx.post(url + CHAT, json={**HI, "stream": True}))[:-1]]
    assert message["content"] is None
    assert all("finish_reason" in choice for chunk in chunks for choice in chunk["choices"])


def test_tools_reach_the_prompt_unless_none_is_chosen() -> None:
    llm = scripted_llm("ok")
    with serving(llm) as url:
        counts = [
            httpx.post(url + CHAT, json={**HI, **fields}).json()["usage"]["prompt_tokens"]
            for fields in ({}, {"tools": TOOLS}, {"tools": TOOLS, "tool_choice": "none"}, {"tools": []})
        ]
    assert counts[1] > counts[0] == counts[2] == counts[3]


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
        response = httpx.post(url + CHAT, json={**HI, **fields, "logprobs": False})
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


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (OverloadedError("full", retry_after=7), 429, "overloaded"),
        (UnavailableError("draining"), 503, "unavailable"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_the_engine_refuses(failure: TernvlError, status: int, code: str, stream: bool) -> None:
    with serving(scripted_llm("", failure=failure)) as url:
        response = httpx.post(url + CHAT, json={**HI, "stream": stream})
    assert response.status_code == status
    assert error_of(response)["code"] == code
    if status == 429:
        assert response.headers["retry-after"] == "7"


def test_a_failure_has_an_id_and_no_internals() -> None:
    with serving(scripted_llm("abc", fail_after=0)) as url:
        response = httpx.post(url + CHAT, json=HI)
        assert response.status_code == 500
        error = error_of(response)
        assert error["code"].startswith("err_")
        assert error["code"] in error["message"]
        assert "secret" not in response.text
        assert httpx.get(f"{url}/health").status_code == 200


def test_a_failure_within_a_stream_is_its_last_event() -> None:
    with serving(scripted_llm("abc", fail_after=2)) as url:
        seen = events(httpx.post(url + CHAT, json={**HI, "stream": True}))
    assert [json.loads(event)["choices"][0]["delta"]["content"] for event in seen[:2]] == ["a", "b"]
    assert json.loads(seen[2])["error"]["type"] == "server_error"
    assert len(seen) == 3
    assert "secret" not in seen[2]


def test_a_stream_ends_with_done() -> None:
    with serving(scripted_llm("abc")) as url:
        seen = events(httpx.post(url + CHAT, json={**HI, "stream": True}))
    assert seen[-1] == "[DONE]"
    assert json.loads(seen[-2])["choices"][0]["finish_reason"] == "stop"


def test_a_client_that_leaves_a_stream_frees_its_requests() -> None:
    llm = scripted_llm("abc", endless=True)
    engine = llm.engine
    assert isinstance(engine, ScriptedEngine)
    with serving(llm) as url:
        with httpx.stream("POST", url + CHAT, json={**HI, "stream": True, "n": 2}) as response:
            next(response.iter_bytes())
        until(lambda: len(engine.aborted) == 2)
        assert not engine.has_work


def test_a_client_that_leaves_before_its_answer_frees_its_request() -> None:
    llm = scripted_llm("abc", endless=True)
    engine = llm.engine
    assert isinstance(engine, ScriptedEngine)
    with serving(llm) as url:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url + CHAT, json=HI, timeout=0.3)
        until(lambda: len(engine.aborted) == 1)
        assert not engine.has_work


def test_clients_that_leave_at_random_moments_leave_nothing() -> None:
    llm = tiny_llm(max_num_seqs=4, kv_cache_memory=150_000)
    with serving(llm) as url:
        address = httpx.URL(url)
        load = attack((address.host, address.port or 0), requests=200, concurrency=16, longest_stay=0.3, seed=1)
        ends = asyncio.run(load)
        assert ends["left"] > 50
        assert ends.total() == 200
        assert isinstance(llm.engine, Engine)
        assert held(llm.engine) == {"sequences": 0, "blocks": 0, "vision_entries": 0}
        assert httpx.post(url + CHAT, json=HI, timeout=30).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_takes_too_long_is_given_up(stream: bool) -> None:
    llm = scripted_llm("abc", endless=True)
    engine = llm.engine
    assert isinstance(engine, ScriptedEngine)
    with serving(llm, request_timeout=0.2) as url:
        response = httpx.post(url + CHAT, json={**HI, "stream": stream, "n": 2}, timeout=30)
        until(lambda: len(engine.aborted) == 2)
    assert response.status_code == (200 if stream else 504)
    error = json.loads(events(response)[-1])["error"] if stream else error_of(response)
    assert (error["code"], error["type"]) == ("request_timeout", "server_error")


def test_a_prompt_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(build, "fetch", lambda *_: release.wait(30))
    part = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    with serving(tiny_llm(), request_timeout=0.2) as url:
        pictures = {**HI, "stream": True, "messages": [{"role": "user", "content": [part]}]}
        response = httpx.post(url + CHAT, json=pictures, timeout=30)
        release.set()
    assert response.status_code == 504
    assert error_of(response)["code"] == "request_timeout"


def test_a_queue_takes_all_answers_of_a_request_or_none() -> None:
    llm = scripted_llm("abc", endless=True, config=EngineConfig(max_model_len=512, max_queue=2))
    engine = llm.engine
    assert isinstance(engine, ScriptedEngine)
    with serving(llm) as url, ThreadPoolExecutor() as pool:
        patience = httpx.Timeout(30, read=3)
        asking = [pool.submit(httpx.post, url + CHAT, json={**HI, "n": n}, timeout=patience) for n in (1, 1)]
        until(lambda: len(engine.requests) == 2)
        for stream in (False, True):
            refused = httpx.post(url + CHAT, json={**HI, "n": 2, "stream": stream}, timeout=30)
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            assert (error_of(refused)["code"], error_of(refused)["type"]) == ("overloaded", "rate_limit_error")
            never = httpx.post(url + CHAT, json={**HI, "n": 3, "stream": stream}, timeout=30)
            assert (never.status_code, error_of(never)["param"]) == (400, "n")
        assert len(engine.requests) == 2
        assert engine.aborted == []
        for future in asking:
            assert isinstance(future.exception(), httpx.ReadTimeout)
        until(lambda: len(engine.aborted) == 2)


@pytest.mark.parametrize("stream", [False, True])
def test_usage_tells_what_the_cache_spared(stream: bool) -> None:
    options = {"include_usage": True} if stream else None
    with serving(scripted_llm("abc", cached=(4, 16, 8))) as url:
        response = httpx.post(url + CHAT, json={**HI, "n": 3, "stream": stream, "stream_options": options})
    usage = (json.loads(events(response)[-2]) if stream else response.json())["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 16


def test_a_stop_string_frees_the_request() -> None:
    llm = scripted_llm("abc", endless=True)
    engine = llm.engine
    assert isinstance(engine, ScriptedEngine)
    with serving(llm) as url:
        answer = httpx.post(url + CHAT, json={**HI, "stop": "bca"}).json()["choices"][0]
        until(lambda: len(engine.aborted) == 1)
    assert (answer["message"]["content"], answer["finish_reason"]) == ("a", "stop")


def test_too_many_requests_at_once() -> None:
    with (
        serving(scripted_llm("abc", endless=True), max_concurrent_requests=1) as url,
        httpx.stream("POST", url + CHAT, json={**HI, "stream": True}) as response,
    ):
        stream = response.iter_bytes()  # held, for httpx ends the connection with its iterator
        next(stream)
        refused = httpx.post(url + CHAT, json=HI)
        assert httpx.get(f"{url}/health").status_code == 200
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 0


def test_a_body_that_never_ends_is_given_up() -> None:
    def pieces() -> Iterator[bytes]:
        yield b"{"
        time.sleep(1)
        yield b"}"

    with serving(tiny_llm(), body_timeout=0.2) as url:
        response = httpx.post(url + CHAT, content=pieces(), headers=JSON)
    assert response.status_code == 408
    assert "0.2 seconds" in error_of(response)["message"]


def test_two_that_bind_at_once_are_told_apart() -> None:
    with bind(ServerConfig(port=0)) as first, bind(ServerConfig(port=first.getsockname()[1])) as second:
        first.listen()
        with pytest.raises(TernvlError, match="Cannot listen"):
            run(tiny_llm(), ServerConfig(), second)


def test_text_does_not_wait_for_images(monkeypatch: pytest.MonkeyPatch) -> None:
    fetching, release = threading.Event(), threading.Event()

    def slow(*_: Any) -> bytes:
        fetching.set()
        release.wait(30)
        return b""

    monkeypatch.setattr(build, "fetch", slow)
    part = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    pictures = {**HI, "messages": [{"role": "user", "content": [part]}]}
    with serving(tiny_llm(), prompt_workers=1) as url, ThreadPoolExecutor() as pool:
        waiting = pool.submit(httpx.post, url + CHAT, json=pictures, timeout=60)
        try:
            assert fetching.wait(30)
            assert httpx.post(url + CHAT, json=HI, timeout=30).status_code == 200
        finally:
            release.set()
        assert waiting.result().status_code == 400


def test_answers_without_a_seed_have_the_engines() -> None:
    def ask(seed: int) -> list[str]:
        with serving(tiny_llm(seed=seed)) as url:
            asked = {**HI, "max_tokens": 16, "n": 2}
            return [c["message"]["content"] for c in httpx.post(url + CHAT, json=asked, timeout=30).json()["choices"]]

    assert ask(1) == ask(1) != ask(2)
    assert len(set(ask(1))) == 2


def test_an_address_that_is_taken() -> None:
    with bind(ServerConfig(port=0)) as sock:
        sock.listen()
        port = sock.getsockname()[1]
        with pytest.raises(TernvlError, match=f"port {port}"):
            bind(ServerConfig(port=port))
    with pytest.raises(TernvlError, match="0 to 65535"):
        bind(ServerConfig(port=70_000))
    with pytest.raises(TernvlError, match="nowhere"):
        bind(ServerConfig(host="nowhere.invalid"))
