"""Limits of keys on a real socket: refusals in both protocols, headers, and who pays for what."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from anthropic import Anthropic
from anthropic import RateLimitError as AnthropicRateLimitError
from openai import OpenAI, RateLimitError

from ternvl.errors import OverloadedError
from ternvl.llm import LLM
from ternvl.server.guard import quota
from tests.server.calling import BRIEF, CHAT, error_of, events
from tests.server.fakes import scripted_llm, serving, tiny_llm
from tests.server.guard.keyed import bearer, write
from tests.server.images import data_uri, png


@contextmanager
def limited(llm: LLM, folder: Path, **limits: int) -> Iterator[httpx.Client]:
    """A client whose key has limits."""
    path = write(folder / "keys.toml", {"name": "team", **limits}, {"name": "free"})
    with (
        serving(llm, api_key_file=path) as url,
        httpx.Client(base_url=url, headers=bearer("team"), timeout=60) as http,
    ):
        yield http


def test_requests_of_a_minute(tmp_path: Path) -> None:
    with limited(scripted_llm("ok"), tmp_path, requests_per_minute=2) as http:
        left = []
        for _ in range(2):
            answer = http.post(CHAT, json=BRIEF)
            assert answer.status_code == 200
            left.append(answer.headers["x-ratelimit-remaining-requests"])
        refused = http.post(CHAT, json=BRIEF)
        assert left == ["1", "0"]
        assert (refused.status_code, error_of(refused)["code"]) == (429, "rate_limit_exceeded")
        assert error_of(refused)["type"] == "rate_limit_error"
        assert 50 < int(refused.headers["retry-after"]) <= 60
        assert refused.headers["x-ratelimit-limit-requests"] == "2"
        assert float(refused.headers["x-ratelimit-reset-requests"].rstrip("s")) <= 60
        assert "x-ratelimit-limit-tokens" not in refused.headers
        assert http.post("/v1/messages", json=BRIEF).json()["error"]["type"] == "rate_limit_error"
        assert http.get("/v1/models").status_code == 200, "only POST requests count"
        other = http.post(CHAT, json=BRIEF, headers=bearer("free"))
        assert other.status_code == 200
        assert not [name for name in other.headers if name.startswith("x-ratelimit")]


def test_clients_of_both_protocols_know_the_refusal(tmp_path: Path) -> None:
    with limited(scripted_llm("ok"), tmp_path, requests_per_minute=1) as http:
        http.post(CHAT, json=BRIEF)
        url, messages = str(http.base_url), BRIEF["messages"]
        with (
            OpenAI(base_url=f"{url}/v1", api_key="team", max_retries=0) as openai,
            pytest.raises(RateLimitError, match=r"requests a minute \(1\)"),
        ):
            openai.chat.completions.create(model="tiny", messages=messages)  # type: ignore[call-overload]
        with (
            Anthropic(base_url=url, api_key="team", max_retries=0) as anthropic,
            pytest.raises(AnthropicRateLimitError),
        ):
            anthropic.messages.create(model="tiny", messages=messages, max_tokens=1)  # type: ignore[call-overload]


def test_a_refused_request_is_accepted_when_it_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "WINDOW", 0.9)
    with limited(scripted_llm("ok"), tmp_path, requests_per_minute=1) as http:
        assert http.post(CHAT, json=BRIEF).status_code == 200
        while (refused := http.post(CHAT, json=BRIEF)).status_code != 429:
            pass  # a busy machine has let the window pass
        assert refused.headers["retry-after"] == "1"
        time.sleep(1)
        assert http.post(CHAT, json=BRIEF).status_code == 200


def test_tokens_of_text_images_and_answers_count(tmp_path: Path) -> None:
    image = {"type": "image_url", "image_url": {"url": data_uri(png("red", (8, 8)))}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "What?"}, image]}]
    with limited(tiny_llm(), tmp_path, tokens_per_minute=1000) as http:

        def left(answer: httpx.Response) -> int:
            return int(answer.headers["x-ratelimit-remaining-tokens"])

        used = 0
        for stream in (False, True):
            body = {"messages": messages, "max_tokens": 7, "n": 2, "ignore_eos": True, "stream": stream}
            if stream:
                body["stream_options"] = {"include_usage": True}
            answer = http.post(CHAT, json=body)
            usage = _usage(answer, stream)
            assert usage["prompt_tokens_details"]["image_tokens"] == 4
            used += usage["total_tokens"]
            invalid = http.post(CHAT, json={"messages": []})
            assert (invalid.status_code, left(invalid)) == (400, 1000 - used)
            if stream:
                assert left(answer) == 1000 - used + usage["completion_tokens"] - 14, "reserved while it ran"
        assert http.post("/tokenize", json={"prompt": "no answer, no tokens"}).status_code == 200
        assert left(http.post(CHAT, json={"messages": []})) == 1000 - used


def _usage(answer: httpx.Response, stream: bool) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    if not stream:
        return dict(answer.json()["usage"])
    return dict(json.loads(events(answer)[-2])["usage"])


def test_a_client_that_leaves_pays_for_what_was_generated(tmp_path: Path) -> None:
    llm = scripted_llm("abc", endless=True)
    with limited(llm, tmp_path, tokens_per_minute=100_000) as http:
        with http.stream("POST", CHAT, json={**BRIEF, "stream": True, "max_tokens": 900}) as response:
            pieces = response.iter_bytes()
            for _ in range(5):
                next(pieces)
        while not llm.engine.aborted:  # type: ignore[union-attr]
            time.sleep(0.01)
        deadline = time.monotonic() + 30
        used = 900
        while used >= 900 and time.monotonic() < deadline:  # until its reservation is given back
            answer = http.post(CHAT, json={"messages": []})
            used = 100_000 - int(answer.headers["x-ratelimit-remaining-tokens"])
            time.sleep(0.01)
        assert 0 < used < 900


def test_a_budget_that_is_used_up(tmp_path: Path) -> None:
    with limited(tiny_llm(), tmp_path, tokens_per_minute=60) as http:
        ask = {"messages": [{"role": "user", "content": "hi"}], "ignore_eos": True}
        assert http.post(CHAT, json={**ask, "max_tokens": 50}).status_code == 200
        for path in (CHAT, "/v1/messages"):
            refused = http.post(path, json={**ask, "max_tokens": 1})
            assert refused.status_code == 429, refused.text
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            assert "tokens a minute (60)" in refused.json()["error"]["message"]
        long = http.post(CHAT, json={**ask, "messages": [{"role": "user", "content": "hi " * 100}]})
        assert long.status_code in (400, 429)
    with limited(tiny_llm(), tmp_path, tokens_per_minute=60) as http:
        long = http.post(CHAT, json={**ask, "messages": [{"role": "user", "content": "hi " * 100}]})
        assert (long.status_code, error_of(long)["code"]) == (400, "token_budget_exceeded")


def test_what_the_server_refuses_costs_nothing(tmp_path: Path) -> None:
    llm = scripted_llm("ok", failure=OverloadedError("full", retry_after=7))
    with limited(llm, tmp_path, requests_per_minute=5, tokens_per_minute=1000) as http:
        for _ in range(20):
            refused = http.post(CHAT, json=BRIEF)
            assert (refused.status_code, error_of(refused)["code"]) == (429, "overloaded")
        assert refused.headers["x-ratelimit-remaining-requests"] == "5"
        assert http.get("/v1/models").headers["x-ratelimit-remaining-tokens"] == "1000"
        invalid = http.post(CHAT, json={"messages": []})
        assert invalid.headers["x-ratelimit-remaining-requests"] == "4", "a mistake of the client counts"


def test_reading_keys_again_resets_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ternvl.server.guard.reload.POLL_SECONDS", 0.02)
    with limited(scripted_llm("ok"), tmp_path, requests_per_minute=2) as http:
        assert http.post(CHAT, json=BRIEF).headers["x-ratelimit-remaining-requests"] == "1"
        write(tmp_path / "keys.toml", {"name": "team", "requests_per_minute": 4})
        while http.get("/v1/models").headers["x-ratelimit-limit-requests"] != "4":
            time.sleep(0.01)
        assert http.post(CHAT, json=BRIEF).headers["x-ratelimit-remaining-requests"] == "2"
