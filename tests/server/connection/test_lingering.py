"""Answers that refuse a body which is still on the way: the client that sends it can read them."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import httpx
import pytest

from ternvl.server.connection import lingering
from tests.server.fakes import serving, tiny_llm

LARGE = 24 * 2**20
"""More bytes than the buffers of two sockets hold."""
START = b"POST %s HTTP/1.1\r\nHost: a\r\n%sAuthorization: Bearer %s\r\n"
JSON = b"Content-Type: application/json\r\n"
LENGTH = b"Content-Length: %d\r\n" % LARGE
REFUSED = {
    "413, by its length": (b"/v1/completions", JSON, b"key", 413),
    "413, in chunks": (b"/v1/completions", JSON + b"Transfer-Encoding: chunked\r\n", b"key", 413),
    "401": (b"/v1/completions", JSON, b"other", 401),
    "401, to a client that asks once": (b"/v1/completions", JSON + b"Connection: close\r\n", b"other", 401),
    "404": (b"/v1/nothing", JSON, b"key", 404),
    "405": (b"/v1/models", JSON, b"key", 405),
    "415": (b"/v1/completions", b"Content-Type: text/plain\r\n", b"key", 415),
}


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    with serving(tiny_llm(), api_key="key", max_body_bytes=1_000_000) as url:
        parsed = httpx.URL(url)
        yield parsed.host, parsed.port or 0


def head_of(name: str) -> tuple[bytes, bool, int]:
    path, headers, key, status = REFUSED[name]
    in_chunks = b"chunked" in headers
    return START % (path, headers, key) + (b"" if in_chunks else LENGTH), in_chunks, status


@pytest.mark.parametrize("name", REFUSED)
def test_a_client_that_sends_all_before_it_reads_gets_the_answer(address: tuple[str, int], name: str) -> None:
    head, in_chunks, status = head_of(name)
    body = b"a" * LARGE
    with socket.create_connection(address, timeout=20) as client:
        client.sendall(head + b"\r\n")
        client.sendall(b"%x\r\n%s\r\n0\r\n\r\n" % (LARGE, body) if in_chunks else body)
        assert client.recv(65_536).startswith(b"HTTP/1.1 %d " % status)


def test_a_client_that_waits_to_be_asked_is_not_asked(address: tuple[str, int]) -> None:
    head, _, _ = head_of("413, by its length")
    with socket.create_connection(address, timeout=20) as client:
        client.sendall(head + b"Expect: 100-continue\r\n\r\n")
        received = client.makefile("rb").read()
        assert received.startswith(b"HTTP/1.1 413 ")
        assert received.count(b"HTTP/1.1") == 1


def test_a_client_that_sends_no_more_gets_the_answer_and_is_given_up(
    address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lingering, "SECONDS", 0.2)
    head, _, _ = head_of("401")
    with socket.create_connection(address, timeout=20) as client:
        client.sendall(head + b"\r\n{")
        received = client.makefile("rb").read()
        assert received.startswith(b"HTTP/1.1 401 ")


def test_a_connection_whose_refused_body_was_read_serves_on(address: tuple[str, int]) -> None:
    with httpx.Client(base_url=f"http://{address[0]}:{address[1]}", headers={"x-api-key": "other"}) as http:
        for _ in range(3):
            assert http.post("/v1/completions", json={"prompt": "a" * 200_000}).status_code == 401
