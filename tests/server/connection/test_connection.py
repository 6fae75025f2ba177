"""Connections over raw sockets: heads that two programs could read differently, slow ones, and too many."""

from __future__ import annotations

import json
import re
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest

from ternvl.config import ServerConfig
from ternvl.errors import ConfigError
from ternvl.server import bind
from ternvl.server.connection import limits
from ternvl.server.connection.strict import MAX_HEAD, StrictConnection
from tests.server.fakes import serving, tiny_llm

BODY = json.dumps({"prompt": "a", "max_tokens": 1}).encode()
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
START = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
IN_CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"

SMUGGLED = {
    "both lengths": START + LENGTH + CHUNKED + b"\r\n" + IN_CHUNKS,
    "both lengths, the other order": START + CHUNKED + LENGTH + b"\r\n" + IN_CHUNKS,
    "two equal lengths": START + LENGTH + LENGTH + b"\r\n" + BODY,
    "two lengths": START + LENGTH + b"Content-Length: 0\r\n\r\n" + BODY,
    "a list of lengths": START + b"Content-Length: %d, %d\r\n\r\n" % (len(BODY), len(BODY)) + BODY,
    "a signed length": START + b"Content-Length: +%d\r\n\r\n" % len(BODY) + BODY,
    "a hexadecimal length": START + b"Content-Length: 0x%x\r\n\r\n" % len(BODY) + BODY,
    "a length below zero": START + b"Content-Length: -1\r\n\r\n" + BODY,
    "an empty length": START + b"Content-Length: \r\n\r\n" + BODY,
    "a blank before the colon": START + b"Content-Length : 3\r\n\r\n" + BODY,
    "an unknown encoding": START + b"Transfer-Encoding: xchunked\r\n\r\n" + IN_CHUNKS,
    "two encodings": START + CHUNKED + b"Transfer-Encoding: identity\r\n\r\n" + IN_CHUNKS,
    "a list of encodings": START + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + IN_CHUNKS,
    "an encoding after a tab": START + b"Transfer-Encoding:\x0bchunked\r\n\r\n" + IN_CHUNKS,
    "line feeds alone": (START + LENGTH + b"\r\n").replace(b"\r\n", b"\n") + BODY,
    "one line feed alone": START + b"X: a\nY: b\r\n" + LENGTH + b"\r\n" + BODY,
    "a carriage return alone": START + b"X: a\rY: b\r\n" + LENGTH + b"\r\n" + BODY,
    "an empty line that ends in a line feed alone": START + LENGTH + b"\n" + BODY,
    "a header of two lines": START + b"X: a\r\n b\r\n" + LENGTH + b"\r\n" + BODY,
    "an encoding on the second line": START + b"Transfer-Encoding:\r\n chunked\r\n\r\n" + IN_CHUNKS,
    "a first header that is continued": b"GET /health HTTP/1.1\r\n Host: a\r\n\r\n",
    "a null byte": START + b"X: a\x00b\r\n" + LENGTH + b"\r\n" + BODY,
    "a control character": START + b"X: a\x01b\r\n" + LENGTH + b"\r\n" + BODY,
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "no name of a header": START + b": a\r\n" + LENGTH + b"\r\n" + BODY,
    "no colon": START + b"abc\r\n" + LENGTH + b"\r\n" + BODY,
    "another version": b"GET /health HTTP/2.0\r\nHost: a\r\n\r\n",
    "no version": b"GET /health\r\nHost: a\r\n\r\n",
    "two blanks": b"GET  /health HTTP/1.1\r\nHost: a\r\n\r\n",
    "an empty line first": b"\r\nGET /health HTTP/1.1\r\nHost: a\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a tunnel": b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
    "no text": bytes(range(1, 32)) * 8 + b"\r\n\r\n",
    "a handshake of TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xff" * 200 + b"\r\n\r\n",
    "a long head": b"GET /health HTTP/1.1\r\nHost: a\r\nX: " + b"a" * (2 * MAX_HEAD) + b"\r\n\r\n",
    "a long first line": b"GET /" + b"a" * (2 * MAX_HEAD),
    "many headers": b"GET /health HTTP/1.1\r\nHost: a\r\n" + b"X: a\r\n" * 120 + b"\r\n",
    "a size of a chunk that is signed": START + CHUNKED + b"\r\n+3\r\nabc\r\n0\r\n\r\n",
    "a size of a chunk with a blank": START + CHUNKED + b"\r\n 3\r\nabc\r\n0\r\n\r\n",
    "a huge size of a chunk": START + CHUNKED + b"\r\n" + b"f" * 40 + b"\r\nabc\r\n0\r\n\r\n",
    "a chunk that is too long": START + CHUNKED + b"\r\n3\r\nabcdef\r\n0\r\n\r\n",
    "a chunk that ends in two other bytes": START + CHUNKED + b"\r\n3\r\nabcXX0\r\n\r\n",
}


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    with serving(tiny_llm()) as url:
        parsed = httpx.URL(url)
        yield parsed.host, parsed.port or 0


def exchange(address: tuple[str, int], sent: bytes) -> bytes:
    """All that a server answers until it closes the connection."""
    with socket.create_connection(address, timeout=20) as client:
        received = b""
        try:
            client.sendall(sent)
            while data := client.recv(65_536):
                received += data
        except ConnectionError:  # the server has closed it with unread bytes
            pass
        return received


@pytest.mark.parametrize("name", SMUGGLED)
def test_a_request_that_can_be_read_in_two_ways_ends_the_connection(address: tuple[str, int], name: str) -> None:
    received = exchange(address, SMUGGLED[name] + HIDDEN)
    assert len(re.findall(rb"HTTP/1\.1 \d{3} ", received)) <= 1
    assert b"/hidden" not in received
    if received:  # a body that is cut may lose the answer
        status = int(received.split()[1])
        assert status in (400, 405, 431, 501, 505), received
        head, _, body = received.partition(b"\r\n\r\n")
        assert b"connection: close" in head.lower()
        assert json.loads(body)["error"]["type"] in ("invalid_request_error", "server_error")


def test_a_refused_request_after_an_answer_ends_the_connection(address: tuple[str, int]) -> None:
    good = START + LENGTH + b"\r\n" + BODY
    received = exchange(address, good + good + SMUGGLED["both lengths"] + HIDDEN)
    assert [int(each.split()[0]) for each in received.split(b"HTTP/1.1 ")[1:]] == [200, 200, 400]
    assert b"one of Content-Length and Transfer-Encoding" in received


@pytest.mark.parametrize("size", [1, 7, 64])
def test_a_head_may_arrive_in_pieces(address: tuple[str, int], size: int) -> None:
    sent = START + CHUNKED + b"Connection: close\r\n\r\n" + IN_CHUNKS
    with socket.create_connection(address, timeout=20) as client:
        for start in range(0, len(sent), size):
            client.sendall(sent[start : start + size])
            if size > 1:
                time.sleep(0.001)
        received = client.makefile("rb").read()
    assert received.startswith(b"HTTP/1.1 200"), received


def is_closed(client: socket.socket) -> bool:
    try:
        return client.recv(65_536) == b""
    except ConnectionError:
        return True


def test_connections_that_send_no_head_are_closed() -> None:
    with serving(tiny_llm(), head_timeout=0.5) as url, ExitStack() as stack:
        parsed = httpx.URL(url)
        clients = [
            stack.enter_context(socket.create_connection((parsed.host, parsed.port or 0), timeout=20))
            for _ in range(60)
        ]
        for number, client in enumerate(clients):
            if number % 2:
                client.sendall(b"GET /health HTTP/1.1\r\n")
        ends = [client.recv(65_536) for client in clients]
        assert all(end == b"" for end in ends[::2])
        assert all(end.startswith(b"HTTP/1.1 408") and b"within 0.5 s" in end for end in ends[1::2])
        assert all(is_closed(client) for client in clients)
        assert httpx.get(f"{url}/health").status_code == 200


def test_a_head_that_trickles_is_given_up() -> None:
    with serving(tiny_llm(), head_timeout=0.5) as url:
        parsed = httpx.URL(url)
        with socket.create_connection((parsed.host, parsed.port or 0), timeout=20) as client:
            received = b""
            client.settimeout(0.05)
            for _ in range(400):
                try:
                    client.sendall(b"X")
                    received += client.recv(65_536)
                    break
                except TimeoutError:
                    continue
            assert received.startswith(b"HTTP/1.1 408")


def test_an_idle_connection_makes_room_for_a_new_one_and_a_busy_one_does_not() -> None:
    with serving(tiny_llm(), max_connections=4) as url, ExitStack() as stack:
        parsed = httpx.URL(url)
        place = (parsed.host, parsed.port or 0)
        idle = stack.enter_context(socket.create_connection(place, timeout=20))
        for _ in range(3):
            busy = stack.enter_context(socket.create_connection(place, timeout=20))
            busy.sendall(START + b"Content-Length: 100\r\n\r\n{")
        time.sleep(0.3)
        assert httpx.get(f"{url}/health").status_code == 200  # it is there in place of the idle one
        assert is_closed(idle)
        last = stack.enter_context(socket.create_connection(place, timeout=20))
        last.sendall(START + b"Content-Length: 100\r\n\r\n{")
        time.sleep(0.3)
        refused = exchange(place, b"")
        assert refused.startswith(b"HTTP/1.1 503")
        assert b"retry-after: 1" in refused
        assert b"has 4 connections" in refused


def test_a_client_has_its_share_of_the_connections() -> None:
    with serving(tiny_llm(), max_connections_per_client=2) as url, ExitStack() as stack:
        parsed = httpx.URL(url)
        place = (parsed.host, parsed.port or 0)
        for _ in range(2):
            busy = stack.enter_context(socket.create_connection(place, timeout=20))
            busy.sendall(b"GET")
        time.sleep(0.3)
        assert b"A client may have 2 connections" in exchange(place, b"")


def test_the_limit_of_open_files_leaves_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    for allowed, connections in ((200, 200 - 96 - 8), (1_000_000, 65_536 - 96 - 8)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, allowed=allowed: (100, allowed))
        assert limits.max_connections(ServerConfig()) == connections
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 130))
    with pytest.raises(ConfigError, match=r"may have 130 open files, which leaves 26 .*ulimit -n"):
        bind(ServerConfig(port=0))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 300))
    with pytest.raises(ConfigError, match=r"max_connections is 1000, but .* leaves 196 connections"):
        bind(ServerConfig(port=0, max_connections=1000))


def test_a_body_for_which_there_is_no_memory_gets_an_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    received = StrictConnection.receive_data
    total = 0

    def short_of_memory(self: StrictConnection, data: bytes) -> None:
        nonlocal total
        total += len(data)
        if total > 2**20:
            raise MemoryError
        received(self, data)

    monkeypatch.setattr(StrictConnection, "receive_data", short_of_memory)
    with serving(tiny_llm()) as url, httpx.Client(base_url=url, timeout=60) as http:
        refused = http.post("/v1/completions", json={"prompt": "a" * 8 * 2**20})
        assert (refused.status_code, refused.headers["connection"]) == (503, "close")
        assert refused.headers["retry-after"]
        assert refused.json()["error"]["message"] == "The server has no more memory for this request."
        assert "The system has no more memory for a request that arrives from 127.0.0.1" in caplog.text
        total = -(2**20)
        assert http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}).status_code == 200
