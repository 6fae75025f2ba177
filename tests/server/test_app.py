"""What the application answers by itself: unknown paths, wrong methods, other origins."""

from __future__ import annotations

import httpx
import pytest

from tests.server.calling import BRIEF, CHAT, error_of


@pytest.mark.parametrize(
    ("method", "path", "status", "allowed"),
    [
        ("GET", CHAT, 405, ["POST"]),
        ("POST", "/v1/models", 405, ["GET", "HEAD"]),
        ("GET", "/nope", 404, [""]),
        ("POST", "/v2/chat/completions", 404, [""]),
    ],
)
def test_unknown_paths_and_methods(http: httpx.Client, method: str, path: str, status: int, allowed: list[str]) -> None:
    response = http.request(method, path)
    assert response.status_code == status
    assert path in error_of(response)["message"]
    assert sorted(response.headers.get("allow", "").split(", ")) == allowed


def test_no_origin_is_allowed_by_default(http: httpx.Client) -> None:
    response = http.post(CHAT, json=BRIEF, headers={"Origin": "https://app.example"})
    assert "access-control-allow-origin" not in response.headers
