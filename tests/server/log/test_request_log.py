"""The log: a line for each request, for people and for programs, without what is private."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from ternvl.config import ServerConfig
from ternvl.errors import ConfigError
from ternvl.server.guard.validate import check_config
from ternvl.server.log import lines as logs
from tests.server.calling import BRIEF, CHAT
from tests.server.fakes import serving, tiny_llm
from tests.waiting import eventually

SECRET = "a prompt of a patient"
BODY: dict[str, Any] = {**BRIEF, "max_tokens": 3, "ignore_eos": True, "messages": [{"role": "user", "content": SECRET}]}


@contextmanager
def logging_to(stream: io.StringIO, level: int, form: str) -> Iterator[None]:
    """Log to a stream within the context."""
    root, handler = logging.getLogger(), logs.handler(form, stream)
    before = root.level
    root.addHandler(handler)
    root.setLevel(level)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(before)


@pytest.fixture
def log() -> io.StringIO:
    return io.StringIO()


def test_a_line_of_json_for_each_request(log: io.StringIO) -> None:
    with serving(tiny_llm(), api_key="sk-secret") as url, logging_to(log, logging.INFO, "json"):
        headers = {"x-request-id": "abc", "Authorization": "Bearer sk-secret"}
        with httpx.Client(base_url=url, timeout=30, headers=headers) as http:
            usage = http.post(CHAT, json={**BODY, "n": 2}).json()["usage"]
            http.post(CHAT, json={**BODY, "n": 0})
            http.get("/no/such%0Apath")
            http.get("/health")
            eventually(lambda: log.getvalue().count("ternvl.request") == 3)
    text = log.getvalue()
    assert SECRET not in text
    assert "sk-secret" not in text
    lines = [line for line in map(json.loads, text.splitlines()) if line["logger"].startswith("ternvl")]
    answered, refused, lost = [line for line in lines if line["logger"] == "ternvl.request"]
    assert (answered["status"], refused["status"], lost["status"]) == (200, 400, 404)
    assert all(line["request_id"] == "abc" for line in lines)
    assert (answered["endpoint"], lost["endpoint"]) == (CHAT, "other")
    assert answered["model"] == "tiny"
    assert answered["key"] == "api-key"
    assert answered["prompt_tokens"] == usage["prompt_tokens"]
    assert answered["answer_tokens"] == usage["completion_tokens"] == 6
    assert answered["finish_reasons"] == ["length", "length"]
    assert 0 < answered["first_token_seconds"] <= answered["seconds"]
    assert "model" not in refused


def test_a_line_for_people(log: io.StringIO) -> None:
    with serving(tiny_llm()) as url, logging_to(log, logging.DEBUG, "text"):
        httpx.post(url + CHAT, json=BODY, headers={"x-request-id": "abc"}, timeout=30)
        httpx.get(f"{url}/health")
        eventually(lambda: "/health" in log.getvalue())
    (line,) = [line for line in log.getvalue().splitlines() if CHAT in line and "ternvl.request" in line]
    assert line.startswith(f"INFO ternvl.request: POST {CHAT} 200 in ")
    assert "3 out" in line
    assert line.endswith("(request abc)")
    assert "DEBUG ternvl.request: GET /health 200" in log.getvalue()
    assert SECRET not in log.getvalue()


def test_an_exception_is_part_of_its_line(log: io.StringIO) -> None:
    with logging_to(log, logging.INFO, "json"):
        try:
            raise ValueError("first\nsecond")
        except ValueError:
            logging.getLogger("a").exception("it %s", "failed")
    (line,) = log.getvalue().splitlines()
    assert json.loads(line)["message"] == "it failed"
    assert "ValueError: first\nsecond" in json.loads(line)["exception"]


def test_a_form_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="log_format is 'xml', but must be text or json"):
        check_config(ServerConfig(log_format="xml"))
