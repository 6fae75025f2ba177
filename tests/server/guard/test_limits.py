"""Request bodies: their JSON, type, size and time."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import httpx
import pytest

from ternvl.errors import RequestError
from ternvl.server.guard.limits import decode_json
from tests.server.calling import BRIEF, CHAT, error_of
from tests.server.fakes import serving, tiny_llm

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not JSON"),
        (b"{", "line 1, column 2"),
        (b'{"messages": NaN}', "NaN"),
        (b'{"temperature": -Infinity}', "-Infinity"),
        (b'\xff{"messages": []}', "byte 0"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "too many digits"),
        (b'{"messages": ' + b"[" * 100 + b"]" * 100 + b"}", "64 levels"),
        (b"[" * 40_000, "64 levels"),
        (b"[" * 200_000, "more than 50000 opening brackets"),
        (b'{"messages": [' + b"{}," * 50_000 + b"{}]}", "more than 50000 opening brackets"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "surrogate"),
        (b"[]", "JSON object"),
        (b"null", "JSON object"),
    ],
)
def test_a_body_that_cannot_be_read(http: httpx.Client, body: bytes, says: str) -> None:
    response = http.post(CHAT, content=body, headers=JSON)
    assert response.status_code == 400
    assert says in error_of(response)["message"]
    assert http.post(CHAT, json=BRIEF).status_code == 200


def test_escaped_characters_are_read(http: httpx.Client) -> None:
    body = b'{"max_tokens": 1, "messages": [{"role": "user", "content": "\\ud83e\\udda4"}]}'
    assert http.post(CHAT, content=body, headers=JSON).status_code == 200


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_only_json_is_taken(http: httpx.Client, content_type: str) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    response = http.post(CHAT, content=json.dumps(BRIEF), headers=headers)
    assert response.status_code == 415
    assert "application/json" in error_of(response)["message"]


def test_content_type_and_encoding(http: httpx.Client) -> None:
    content = json.dumps(BRIEF)
    good = http.post(CHAT, content=content, headers={"Content-Type": "Application/JSON; charset=utf-8"})
    assert good.status_code == 200
    packed = http.post(CHAT, content=content, headers={**JSON, "Content-Encoding": "gzip"})
    assert packed.status_code == 415


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_too_large(http: httpx.Client, chunked: bool) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(20):
            yield b" " * 100_000

    response = http.post(CHAT, content=pieces() if chunked else b" " * 2_000_000, headers=JSON)
    assert response.status_code == 413
    assert "1000000 bytes" in error_of(response)["message"]


def test_a_body_that_never_ends_is_given_up() -> None:
    def pieces() -> Iterator[bytes]:
        yield b"{"
        time.sleep(1)
        yield b"}"

    with serving(tiny_llm(), body_timeout=0.2) as url:
        response = httpx.post(url + CHAT, content=pieces(), headers=JSON)
    assert response.status_code == 408
    assert "0.2 seconds" in error_of(response)["message"]


def test_a_body_of_millions_of_values_is_not_read() -> None:
    with pytest.raises(RequestError, match="more than 1000000 values"):
        decode_json(b"[" + b"1," * 1_000_001 + b"1]")
    assert len(decode_json(b"[" + b"1," * 999_999 + b"1]")) == 1_000_000
