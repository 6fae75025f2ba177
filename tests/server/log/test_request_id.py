"""`x-request-id`: taken or made, on every answer, in the log and in the message of a failure."""

from __future__ import annotations

import logging
import re

import httpx
import pytest

from ternvl.server.guard import deprecation, rate
from ternvl.server.log.request_id import in_words
from tests.server.calling import BRIEF, CHAT, error_of
from tests.server.fakes import scripted_llm, serving

MADE = re.compile(r"req_[0-9a-f]{24}")


@pytest.mark.parametrize("given", ["a", "trace 7/8:9", "x" * 128])
@pytest.mark.parametrize(("path", "body"), [(CHAT, BRIEF), (CHAT, {**BRIEF, "stream": True}), (CHAT, {}), ("/no", {})])
def test_an_id_is_returned_as_it_came(http: httpx.Client, given: str, path: str, body: dict[str, object]) -> None:
    assert http.post(path, json=body, headers={"x-request-id": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", [None, "", "x" * 129, "caf\u00e9".encode("latin-1"), b"a\tb"])
def test_a_missing_or_invalid_id_is_made(http: httpx.Client, given: str | bytes | None) -> None:
    headers = [] if given is None else [(b"x-request-id", given if isinstance(given, bytes) else given.encode())]
    ids = [http.get("/health", headers=headers).headers["x-request-id"] for _ in range(2)]
    assert all(MADE.fullmatch(each) for each in ids)
    assert ids[0] != ids[1]


def test_a_failure_names_the_request_in_its_message_and_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "ternvl.server")
    with serving(scripted_llm("abc", fail_after=0)) as url:
        response = httpx.post(url + CHAT, json={**BRIEF, "colour": 1}, headers={"x-request-id": "mine"})
        unkeyed = httpx.post(url + CHAT, json=BRIEF).headers["x-request-id"]
    assert (response.status_code, response.headers["x-request-id"]) == (500, "mine")
    assert "(request mine)" in error_of(response)["message"]
    logged = [record.getMessage() for record in caplog.records if "(request mine)" in record.getMessage()]
    assert len(logged) == 2  # the unknown field, and the failure
    assert any(f"(request {unkeyed})" in record.getMessage() for record in caplog.records)
    assert in_words() == ""


def test_refusals_of_the_middleware_have_an_id_and_web_pages_may_read_it() -> None:
    with serving(scripted_llm("ok"), api_key="key", allowed_origins=("https://a.example",)) as url:
        refused = httpx.post(url + CHAT, json=BRIEF, headers={"Origin": "https://a.example", "x-request-id": "mine"})
    assert (refused.status_code, refused.headers["x-request-id"]) == (401, "mine")
    exposed = {each.strip().lower() for each in refused.headers["access-control-expose-headers"].split(",")}
    assert exposed == {
        "x-ternvl-ignored-fields",
        "x-ternvl-unenforced-schema",
        "x-ternvl-broken-schema",
        "x-ternvl-unchecked-schema",
        "x-request-id",
        "retry-after",
        *(name.lower() for name in (*deprecation.HEADERS, *rate.HEADERS)),
    }
