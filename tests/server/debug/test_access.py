"""Who may look into a server, and what the log says of it."""

from __future__ import annotations

import logging

import httpx
import pytest

from ternvl.config import ServerConfig
from ternvl.errors import ConfigError
from ternvl.server.guard.validate import check_config
from tests.server.calling import error_of
from tests.server.fakes import scripted_llm, serving

PATHS = ("/debug/state", "/debug/profile?seconds=0.1")


def test_without_administrators_it_is_off() -> None:
    with serving(scripted_llm("ok"), api_key="key") as url, httpx.Client(base_url=url) as http:
        for path in PATHS:
            answer = http.get(path, headers={"Authorization": "Bearer key"})
            assert (answer.status_code, error_of(answer)["code"]) == (403, "debug_not_allowed")
            assert http.get(path).status_code == 401


def test_the_option_opens_it_on_loopback_alone() -> None:
    with serving(scripted_llm("ok"), debug_endpoints=True) as url:
        assert all(httpx.get(url + path).status_code == 200 for path in PATHS)
    with pytest.raises(ConfigError, match=r"debug_endpoints would let everyone who reaches 0\.0\.0\.0 look"):
        check_config(ServerConfig(host="0.0.0.0", debug_endpoints=True))
    check_config(ServerConfig(host="0.0.0.0", debug_endpoints=True, admin_key="hush"))


def test_administrators_may_and_every_use_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    options = {"api_key": "key", "admin_key": "hush-hush", "debug_endpoints": True}
    with serving(scripted_llm("ok"), **options) as url, httpx.Client(base_url=url) as http:
        for secret, status in (("key", 401), ("hush-hush", 200)):
            headers = {"Authorization": f"Bearer {secret}", "x-request-id": "r1"}
            assert [http.get(path, headers=headers).status_code for path in PATHS] == [status] * 2
    lines = [record.getMessage() for record in caplog.records if record.name == "ternvl.audit"]
    assert lines == [
        "api-key from 127.0.0.1: GET /debug/state {}: refused or failed, status 401 (request r1)",
        "api-key from 127.0.0.1: GET /debug/profile {}: refused or failed, status 401 (request r1)",
        "admin-key from 127.0.0.1: GET /debug/state {}: done, status 200 (request r1)",
        'admin-key from 127.0.0.1: GET /debug/profile {"seconds": 0.1, "format": "collapsed"}: '
        "done, status 200 (request r1)",
    ]
    assert logging.getLogger("ternvl.audit").isEnabledFor(logging.INFO)
