"""How a request is read and its answer sent: ignored fields, streams, clients that leave."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from benchmarks.disconnects import attack, held
from ternvl.engine.engine import Engine
from tests.server.calling import BRIEF, CHAT, error_of, events
from tests.server.fakes import ScriptedEngine, scripted_llm, serving, tiny_llm
from tests.waiting import eventually


@pytest.mark.parametrize("stream", [False, True])
def test_unknown_fields_are_named_in_a_header(http: httpx.Client, stream: bool) -> None:
    response = http.post(CHAT, json={**BRIEF, "colour": 1, "stream": stream})
    assert response.status_code == 200
    assert response.headers["x-ternvl-ignored-fields"] == "colour"
    assert "x-ternvl-ignored-fields" not in http.post(CHAT, json=BRIEF).headers


def test_strict_refuses_unknown_fields() -> None:
    with serving(tiny_llm(), strict=True) as url:
        response = httpx.post(url + CHAT, json={**BRIEF, "colour": 1})
        assert response.status_code == 400
        assert error_of(response)["param"] == "colour"
        assert httpx.post(url + CHAT, json=BRIEF).status_code == 200


def test_a_failure_within_a_stream_is_its_last_event() -> None:
    with serving(scripted_llm("abc", fail_after=2)) as url:
        seen = events(httpx.post(url + CHAT, json={**BRIEF, "stream": True}))
    assert [json.loads(event)["choices"][0]["delta"]["content"] for event in seen[:2]] == ["a", "b"]
    assert json.loads(seen[2])["error"]["type"] == "server_error"
    assert len(seen) == 3
    assert "secret" not in seen[2]


def test_a_stream_ends_with_done() -> None:
    with serving(scripted_llm("abc")) as url:
        seen = events(httpx.post(url + CHAT, json={**BRIEF, "stream": True}))
    assert seen[-1] == "[DONE]"
    assert json.loads(seen[-2])["choices"][0]["finish_reason"] == "stop"


def test_a_client_that_leaves_a_stream_frees_its_requests() -> None:
    llm = scripted_llm("abc", endless=True)
    engine = llm.engine
    assert isinstance(engine, ScriptedEngine)
    with serving(llm) as url:
        with httpx.stream("POST", url + CHAT, json={**BRIEF, "stream": True, "n": 2}) as response:
            next(response.iter_bytes())
        eventually(lambda: len(engine.aborted) == 2)
        assert not engine.has_work


def test_a_client_that_leaves_before_its_answer_frees_its_request() -> None:
    llm = scripted_llm("abc", endless=True)
    engine = llm.engine
    assert isinstance(engine, ScriptedEngine)
    with serving(llm) as url:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url + CHAT, json=BRIEF, timeout=0.3)
        eventually(lambda: len(engine.aborted) == 1)
        assert not engine.has_work


def test_clients_that_leave_at_random_moments_leave_nothing() -> None:
    llm = tiny_llm(max_num_seqs=4, kv_cache_memory=150_000)
    with serving(llm) as url:
        address = httpx.URL(url)
        load = attack((address.host, address.port or 0), requests=100, concurrency=16, longest_stay=0.3, seed=1)
        ends = asyncio.run(load)
        assert ends["left"] > 25
        assert ends.total() == 100
        assert isinstance(llm.engine, Engine)
        assert held(llm.engine) == {"sequences": 0, "blocks": 0, "vision_entries": 0}
        assert httpx.post(url + CHAT, json=BRIEF, timeout=30).status_code == 200
