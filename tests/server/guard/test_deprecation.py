"""What is deprecated: a row of the table, and the headers, log lines and descriptions that follow from it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from email.utils import parsedate_to_datetime

import httpx
import pytest

from ternvl.server.docs.openapi import document
from ternvl.server.guard import deprecation
from ternvl.server.guard.deprecation import DEPRECATIONS, Deprecation
from ternvl.server.operations import OPERATIONS
from tests.server.calling import BRIEF, CHAT
from tests.server.fakes import scripted_llm, serving

FIELD = Deprecation(CHAT, date(2027, 3, 1), date(2027, 9, 1), "use max_completion_tokens", field="max_tokens")
OTHER = Deprecation(CHAT, date(2027, 1, 5), date(2027, 12, 1), "it has no effect", field="user")
WHOLE = Deprecation("/detokenize", date(2027, 2, 1), date(2028, 1, 1), "there is no successor")
LEAST_NOTICE = timedelta(days=180)
"""What docs/support.md promises."""


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deprecation, "DEPRECATIONS", (FIELD, OTHER, WHOLE))
        with (
            serving(scripted_llm("ok"), allowed_origins=("https://page.example",)) as url,
            httpx.Client(base_url=url) as client,
        ):
            yield client


def test_a_field_is_deprecated_where_it_is_used(http: httpx.Client) -> None:
    answer = http.post(CHAT, json=BRIEF)
    assert answer.status_code == 200
    assert answer.headers["Deprecation"] == f"@{int(datetime(2027, 3, 1, tzinfo=UTC).timestamp())}"
    assert answer.headers["Sunset"] == "Wed, 01 Sep 2027 00:00:00 GMT"
    assert parsedate_to_datetime(answer.headers["Sunset"]) == datetime(2027, 9, 1, tzinfo=UTC)
    assert answer.headers["x-ternvl-deprecated"] == "/v1/chat/completions#max_tokens"
    for unused in ({"max_completion_tokens": 1}, {"max_tokens": None}):
        body = {"messages": BRIEF["messages"], **unused}
        assert not {"deprecation", "sunset", "x-ternvl-deprecated"} & http.post(CHAT, json=body).headers.keys()


def test_several_rows_give_the_earliest_days(http: httpx.Client) -> None:
    answer = http.post("/chat/completions", json={**BRIEF, "user": "me"})
    assert answer.headers["Deprecation"] == f"@{int(datetime(2027, 1, 5, tzinfo=UTC).timestamp())}"
    assert answer.headers["Sunset"] == "Wed, 01 Sep 2027 00:00:00 GMT"
    assert answer.headers["x-ternvl-deprecated"] == "/v1/chat/completions#max_tokens, /v1/chat/completions#user"


def test_streams_and_refusals_have_the_headers_and_pages_may_read_them(http: httpx.Client) -> None:
    stream = http.post(CHAT, json={**BRIEF, "stream": True}, headers={"Origin": "https://page.example"})
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert stream.headers["x-ternvl-deprecated"].endswith("#max_tokens")
    exposed = {name.strip() for name in stream.headers["access-control-expose-headers"].split(",")}
    assert {"Deprecation", "Sunset", "x-ternvl-deprecated"} <= exposed
    refused = http.post(CHAT, json={**BRIEF, "temperature": 3})
    assert (refused.status_code, "sunset" in refused.headers) == (400, True)


def test_a_whole_endpoint(http: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "ternvl.server"):
        for _ in range(3):
            assert http.post("/detokenize", json={"tokens": [1]}).headers["x-ternvl-deprecated"] == "/detokenize"
    told = [record.getMessage() for record in caplog.records if "deprecated" in record.getMessage()]
    assert told == ["A request uses /detokenize, which is deprecated until 2028-01-01: there is no successor."]


def test_the_description_marks_it(http: httpx.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    assert [path for path, methods in paths.items() if any(each.get("deprecated") for each in methods.values())] == [
        "/detokenize"
    ]
    schema = paths[CHAT]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema["properties"] == {"max_tokens": {"deprecated": True}, "user": {"deprecated": True}}
    page = http.get("/docs").text
    assert (page.count("Deprecated."), page.count("<td>deprecated</td>")) == (1, 2)
    assert "properties" not in str(document(OPERATIONS)["paths"][CHAT]["post"]["requestBody"]["content"])[:200]


@pytest.mark.parametrize("row", [*DEPRECATIONS, FIELD, OTHER, WHOLE], ids=lambda row: row.name)
def test_every_row_names_what_exists_and_gives_notice(row: Deprecation) -> None:
    operation = next(each for each in OPERATIONS if each.path == row.path)
    assert not row.field or (operation.request is not None and row.field in operation.request.model_fields)
    assert row.sunset - row.since >= LEAST_NOTICE
