"""The endpoints that describe the server itself."""

from __future__ import annotations

import httpx

from ternvl import __version__
from tests.server.fakes import scripted_llm, serving


def test_a_full_queue_is_not_ready() -> None:
    llm = scripted_llm("ok")
    llm.engine.stats = lambda: type(stats)(num_waiting=256)  # type: ignore[method-assign]
    stats = scripted_llm("ok").engine.stats()
    with serving(llm) as url:
        answer = httpx.get(url + "/ready")
    assert answer.status_code == 503
    assert "256" in answer.json()["reason"]


def test_health_and_version(http: httpx.Client) -> None:
    assert http.get("/health").json() == {"status": "ok"}
    assert http.get("/version").json() == {"version": __version__}
