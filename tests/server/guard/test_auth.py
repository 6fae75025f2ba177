"""Keys, and the paths that need none."""

from __future__ import annotations

import httpx

from tests.server.calling import BRIEF, CHAT, error_of
from tests.server.fakes import scripted_llm, serving, tiny_llm


def test_the_api_key() -> None:
    with serving(tiny_llm(), api_key="sécret", allowed_origins=("https://app.example",)) as url:
        assert httpx.get(f"{url}/health").status_code == 200
        for key in (None, "wrong", "sécre"):
            headers = {} if key is None else {"Authorization": f"Bearer {key}".encode()}
            response = httpx.post(url + CHAT, json=BRIEF, headers=headers)
            assert response.status_code == 401
            assert error_of(response)["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"
        good = {"Authorization": "Bearer sécret".encode(), "Origin": "https://app.example"}
        answer = httpx.post(url + CHAT, json=BRIEF, headers=good)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
        assert httpx.options(url + CHAT, headers=asked).status_code == 200


def test_ready_and_the_open_paths() -> None:
    with serving(scripted_llm("ok"), api_key="secret") as url, httpx.Client(base_url=url) as http:
        assert (http.get("/ready").status_code, http.get("/ready").json()) == (200, {"status": "ready"})
        assert http.get("/health").status_code == 200
        assert http.get("/metrics").status_code == 401
        assert http.get("/metrics", headers={"x-api-key": "secret"}).status_code == 200
        wrong = http.post("/v1/messages", headers={"x-api-key": "wrong"}, json={})
        assert (wrong.status_code, wrong.json()["error"]["type"]) == (401, "authentication_error")
