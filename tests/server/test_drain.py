"""How a server stops: real processes with real signals, and the gate alone."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]
LONG = {"messages": [{"role": "user", "content": "Hello"}], "ignore_eos": True, "max_tokens": 100_000}


@contextmanager
def server(*flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that serves the embedded model, and its address."""
    command = [sys.executable, "-m", "ternvl", "serve", "--port", "0", "--log-level", "error", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            said = ""
            while not (url := re.search(r"served at (http://127\.0\.0\.1:\d+)/v1", said)):
                line = process.stdout.readline()
                assert line, "the server ended before it greeted"
                said += line
            assert re.search(r"^KV cache: +[\d.]+ [kMG]B holds [\d,]+ tokens$", said, re.MULTILINE)
            yield process, url[1]
        finally:
            process.kill()


class Stream:
    """A streamed answer that has begun."""

    def __init__(self, pool: ThreadPoolExecutor, url: str, **fields: Any) -> None:
        self._begun: Future[None] = Future()
        self._text = pool.submit(self._read, url, {**LONG, **fields, "stream": True})
        self._begun.result(60)

    def _read(self, url: str, body: dict[str, Any]) -> str:
        text = ""
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as response:
            try:
                for piece in response.iter_text():
                    text += piece
                    if not self._begun.done():
                        self._begun.set_result(None)
            except httpx.RemoteProtocolError:
                return text + "CUT"
        return text

    @property
    def last(self) -> str:
        """Its last event."""
        return self._text.result(60).split("data: ")[-1].strip()


class Half:
    """A request that is accepted, but lacks the end of its body: it is in work for as long as the test wants."""

    def __init__(self, url: str, max_tokens: int) -> None:
        address = httpx.URL(url)
        self._socket = socket.create_connection((address.host, address.port), timeout=60)
        self._body = json.dumps({**LONG, "max_tokens": max_tokens}).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
        self._socket.sendall(f"{head}Content-Length: {len(self._body)}\r\nExpect: 100-continue\r\n\r\n".encode())
        assert b"100" in self._socket.recv(1000), "the body is asked for by whoever works on the request"

    def finish(self) -> None:
        self._socket.sendall(self._body)

    @property
    def answer(self) -> bytes:
        """All that comes before the end of the connection."""
        with self._socket, self._socket.makefile("rb") as reader:
            return reader.read()


def wait_for_503(url: str) -> httpx.Response:
    for _ in range(1000):
        ready = httpx.get(f"{url}/ready", timeout=60)
        if ready.status_code == 503:
            return httpx.get(f"{url}/health", timeout=60)
    pytest.fail("it does not drain")


def test_work_finishes_and_new_work_is_refused() -> None:
    with server() as (process, url), ThreadPoolExecutor() as pool:
        stream = Stream(pool, url, max_tokens=200)
        half = Half(url, max_tokens=3)
        process.send_signal(signal.SIGTERM)
        health = wait_for_503(url)
        refused = httpx.post(f"{url}/v1/chat/completions", json=LONG, timeout=60)
        assert stream.last == "[DONE]"
        half.finish()
        assert half.answer.startswith(b"HTTP/1.1 200 ")
        assert process.wait(60) == 0
    assert (health.status_code, health.json()) == (200, {"status": "draining"})
    assert refused.status_code == 503
    assert (refused.json()["error"]["code"], refused.json()["error"]["type"]) == ("unavailable", "server_error")
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.headers["connection"] == "close"


def test_what_outlasts_the_drain_timeout_is_given_up() -> None:
    with server("--drain-timeout", "0.3", "--max-num-seqs", "1") as (process, url), ThreadPoolExecutor() as pool:
        stream = Stream(pool, url)
        queued, half = Half(url, max_tokens=1000), Half(url, max_tokens=3)
        queued.finish()
        process.send_signal(signal.SIGTERM)
        assert json.loads(stream.last)["error"]["code"] == "unavailable"
        assert queued.answer.startswith(b"HTTP/1.1 503 ")
        assert half.answer.startswith(b"HTTP/1.1 503 ")
        assert process.wait(60) == 0


def test_a_second_signal_ends_at_once() -> None:
    with server("--drain-timeout", "600") as (process, url), ThreadPoolExecutor() as pool:
        stream = Stream(pool, url)
        process.send_signal(signal.SIGTERM)
        wait_for_503(url)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert stream.last.endswith("CUT")


def test_a_closed_terminal_cuts_no_stream() -> None:
    with server("--drain-timeout", "600") as (process, url), ThreadPoolExecutor() as pool:
        stream = Stream(pool, url, max_tokens=200)
        half = Half(url, max_tokens=3)  # it keeps the server from ending
        process.send_signal(signal.SIGHUP)
        wait_for_503(url)
        process.send_signal(signal.SIGHUP)  # the shell and the kernel both send one
        assert stream.last == "[DONE]"
        half.finish()
        assert half.answer.startswith(b"HTTP/1.1 200 ")
        assert process.wait(60) == 0
