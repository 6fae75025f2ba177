"""Exceptions as HTTP answers."""

from __future__ import annotations

import errno
from typing import Any

import httpx
import pytest

from ternvl.errors import OverloadedError, TernvlError, UnavailableError
from ternvl.server.errors import to_http
from tests.server.calling import BRIEF, CHAT, error_of
from tests.server.fakes import scripted_llm, serving


@pytest.mark.parametrize(("fields", "param"), [({"temperature": 3}, "temperature"), ({"messages": "hi"}, "messages")])
def test_a_refusal_names_the_field(http: httpx.Client, fields: dict[str, Any], param: str) -> None:
    for stream in (False, True):
        response = http.post(CHAT, json={**BRIEF, **fields, "stream": stream})
        assert response.status_code == 400
        error = error_of(response)
        assert (error["param"], error["type"]) == (param, "invalid_request_error")


@pytest.mark.parametrize(
    ("failure", "status", "code", "retry_after"),
    [
        (OverloadedError("full", retry_after=7), 429, "overloaded", "7"),
        (UnavailableError("draining"), 503, "unavailable", "5"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_the_engine_refuses(failure: TernvlError, status: int, code: str, retry_after: str, stream: bool) -> None:
    with serving(scripted_llm("", failure=failure)) as url:
        response = httpx.post(url + CHAT, json={**BRIEF, "stream": stream})
    assert (response.status_code, response.headers["retry-after"]) == (status, retry_after)
    assert error_of(response)["code"] == code


@pytest.mark.parametrize(
    ("failure", "lack"),
    [
        (MemoryError(), "memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "memory"),
        (RuntimeError("can't start new thread"), "threads"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "processes"),
        (OSError(errno.EMFILE, "Too many open files"), "open files"),
        (OSError(errno.ENOSPC, "No space left on device", "/secret"), "space on its disk"),
    ],
)
def test_what_the_machine_lacks_is_said(failure: Exception, lack: str, caplog: pytest.LogCaptureFixture) -> None:
    answer = to_http(failure)
    assert (answer.status, answer.code, answer.headers["Retry-After"]) == (503, "unavailable", "5")
    assert answer.message == f"The server has no more {lack} for this request at the moment."
    assert [record.exc_info for record in caplog.records] == [None]  # one line without a traceback


def test_other_errors_of_the_system_are_failures() -> None:
    assert to_http(OSError(errno.EIO, "Input/output error")).status == 500
    assert to_http(RuntimeError("shapes differ")).status == 500


def test_a_failure_has_an_id_and_no_internals() -> None:
    with serving(scripted_llm("abc", fail_after=0)) as url:
        response = httpx.post(url + CHAT, json=BRIEF)
        assert response.status_code == 500
        error = error_of(response)
        assert error["code"].startswith("err_")
        assert error["code"] in error["message"]
        assert "secret" not in response.text
        assert httpx.get(f"{url}/health").status_code == 200
