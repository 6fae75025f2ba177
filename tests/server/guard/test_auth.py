"""Keys, and the paths that need none."""

from __future__ import annotations

import hmac
from contextvars import copy_context
from pathlib import Path
from typing import Any

import httpx
import pytest

from ternvl.prompt.build import PromptBuilder
from ternvl.server.guard import caller
from ternvl.server.guard.keys import Key, Keys, digest_of
from ternvl.types import Prompt
from tests.server.calling import BRIEF, CHAT, HI, error_of
from tests.server.fakes import scripted_llm, serving, tiny_llm
from tests.server.guard.keyed import bearer, status, write


def test_the_api_key() -> None:
    with serving(tiny_llm(), api_key="sécret", allowed_origins=("https://app.example",)) as url:
        assert httpx.get(f"{url}/health", timeout=60).status_code == 200
        for key in (None, "wrong", "sécre"):
            headers = {} if key is None else {"Authorization": f"Bearer {key}".encode()}
            response = httpx.post(url + CHAT, json=BRIEF, headers=headers, timeout=60)
            assert response.status_code == 401
            assert error_of(response)["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"
        good = {"Authorization": "Bearer sécret".encode(), "Origin": "https://app.example"}
        answer = httpx.post(url + CHAT, json=BRIEF, headers=good, timeout=60)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
        assert httpx.options(url + CHAT, headers=asked, timeout=60).status_code == 200


def test_ready_and_the_open_paths() -> None:
    with serving(scripted_llm("ok"), api_key="secret") as url, httpx.Client(base_url=url, timeout=60) as http:
        assert (http.get("/ready").status_code, http.get("/ready").json()) == (200, {"status": "ready"})
        assert http.get("/health").status_code == 200
        assert http.get("/metrics").status_code == 401
        assert http.get("/metrics", headers={"x-api-key": "secret"}).status_code == 200
        wrong = http.post("/v1/messages", headers={"x-api-key": "wrong"}, json={})
        assert (wrong.status_code, wrong.json()["error"]["type"]) == (401, "authentication_error")


def test_roles(tmp_path: Path) -> None:
    path = write(
        tmp_path / "keys.toml",
        {"name": "team"},
        {"name": "scraper", "roles": ["metrics"]},
        {"name": "boss", "roles": ["admin"]},
        {"name": "gone", "expires": "2020-01-01"},
    )
    text = path.read_text().replace("'2020-01-01'", "2020-01-01")
    path.write_text(text)
    with serving(scripted_llm("ok"), api_key_file=path) as url, httpx.Client(base_url=url, timeout=60) as http:
        load = {"lora_name": "a", "lora_path": "/none"}
        seen = {
            name: (
                status(http, name),
                status(http, name, "/metrics"),
                http.post("/v1/load_lora_adapter", json=load, headers=bearer(name)).status_code,
            )
            for name in ("team", "scraper", "boss", "gone", "nobody")
        }
        assert seen == {
            "team": (200, 401, 401),
            "scraper": (401, 200, 401),
            "boss": (200, 200, 403),  # it may load adapters, but not from there
            "gone": (401, 401, 401),
            "nobody": (401, 401, 401),
        }
        assert "has expired" in http.get("/version", headers=bearer("gone")).json()["error"]["message"]
        lacking = http.get("/metrics", headers=bearer("team")).json()["error"]
        assert (lacking["code"], "role metrics" in lacking["message"]) == ("invalid_api_key", True)
        anthropic = http.post("/v1/messages", headers={"x-api-key": "team"}, json={**BRIEF, "model": "tiny"})
        assert anthropic.status_code == 200


def test_metrics_may_be_open() -> None:
    with serving(scripted_llm("ok"), api_key="secret", metrics_access="open") as url:
        assert httpx.get(f"{url}/metrics", timeout=60).status_code == 200
        assert httpx.get(f"{url}/v1/models", timeout=60).status_code == 401


def test_every_key_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first like the last, so that the time of an answer does not tell which key was found."""
    compared = []
    compare = hmac.compare_digest

    def watched(first: bytes, second: bytes) -> bool:
        compared.append(second)
        return compare(first, second)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    ring = Keys(Key(str(number), digest_of(b"%d" % number)) for number in range(5))
    for secret in (b"0", b"4", b"9"):
        compared.clear()
        ring.find(secret)
        assert compared == [key.digest for key in ring.all]


def test_web_pages_may_not_call_the_server_by_default(url: str) -> None:
    headers = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    with httpx.Client(base_url=url, headers=headers, timeout=60) as http:
        answers = [http.get("/v1/models"), http.options(CHAT)]
    for answer in answers:
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("", ""),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("a socket", "a socket"),
    ],
)
def test_a_client_without_a_key_is_the_network_that_it_comes_from(address: str, name: str) -> None:
    def named() -> str:
        caller.address.set(address)
        return caller.client()

    assert copy_context().run(named) == name


def test_a_client_is_its_key_or_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    original = PromptBuilder.build

    def build(builder: PromptBuilder, *messages: Any, client: str, **options: Any) -> Prompt:
        seen.append(client)
        return original(builder, *messages, client=client, **options)

    monkeypatch.setattr(PromptBuilder, "build", build)
    for keys in (None, "[[key]]\nname = 'team-a'\nkey = 'secret'\n"):
        with serving(tiny_llm(), api_keys=keys) as url:
            httpx.post(url + "/tokenize", json=HI, headers={"Authorization": "Bearer secret"}, timeout=60)
    assert seen == ["127.0.0.1", "key team-a"]
