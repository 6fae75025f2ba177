"""The endpoints that describe the server itself."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from ternvl import __version__
from tests.server.calling import BRIEF, CHAT
from tests.server.fakes import scripted_llm, serving
from tests.waiting import eventually


def test_a_full_queue_is_not_ready() -> None:
    llm = scripted_llm("ok")
    llm.engine.stats = lambda: type(stats)(num_waiting=256)  # type: ignore[method-assign]
    stats = scripted_llm("ok").engine.stats()
    with serving(llm) as url:
        answer = httpx.get(url + "/ready")
    assert answer.status_code == 503
    assert "256" in answer.json()["reason"]


def test_a_step_that_does_not_end_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    llm = scripted_llm("ok")
    begun, released = threading.Event(), threading.Event()
    step = llm.engine.step

    def stuck() -> Any:
        begun.set()
        released.wait(60)
        return step()

    llm.engine.step = stuck  # type: ignore[method-assign]
    with serving(llm, stuck_timeout=0.4) as url, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.post, url + CHAT, json=BRIEF, timeout=60)
        try:
            assert begun.wait(30)
            eventually(lambda: httpx.get(url + "/ready").status_code == 503)
            assert "present step has taken" in httpx.get(url + "/ready").json()["reason"]
            eventually(lambda: httpx.get(url + "/health").status_code == 503)
            assert httpx.get(url + "/health").json() == {"status": "stuck"}
            assert caplog.text.count("/health answers 503") == 1, "one line for each step that is stuck"
        finally:
            released.set()
        assert answer.result().status_code == 200
        assert httpx.get(url + "/health").json() == {"status": "ok"}
        assert httpx.get(url + "/ready").status_code == 200


def test_health_and_version(http: httpx.Client) -> None:
    assert http.get("/health").json() == {"status": "ok"}
    assert http.get("/version").json() == {"version": __version__}
