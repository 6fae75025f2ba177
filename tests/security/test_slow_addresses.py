"""Addresses that send a byte a second hold up nobody else, and no host or client has more than its share of fetches."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from typing import Any

import httpx
import pytest

from ternvl.limits import ImageLimits
from ternvl.prompt import media
from tests.prompt.web import Server, send
from tests.server.calling import BRIEF, CHAT, error_of
from tests.server.fakes import serving, tiny_llm
from tests.server.images import data_uri, png
from tests.waiting import eventually


class Trickle:
    """An answer that sends a byte now and then until it is released, and counts how many such answers there are."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.lock = threading.Lock()
        self.now = self.most = self.total = 0

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        with self.lock:
            self.now, self.total = self.now + 1, self.total + 1
            self.most = max(self.most, self.now)
        try:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            while not self.released.wait(0.05):
                handler.wfile.write(b"x")
        finally:
            with self.lock:
                self.now -= 1


@pytest.fixture
def slow() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def asking(*urls: str) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {**BRIEF, "messages": [{"role": "user", "content": parts}]}


def test_slow_addresses_hold_up_neither_text_nor_images(slow: Server) -> None:
    trickle = Trickle()
    good = Server()
    good.answers["/a.png"] = lambda handler: send(handler, body=png())
    slow.answers |= {f"/{number}": trickle for number in range(24)}
    limits = ImageLimits(allow_private_addresses=True, fetch_timeout=600.0)
    with serving(tiny_llm(limits=limits)) as url, ThreadPoolExecutor(24) as threads:
        waiting = [
            threads.submit(httpx.post, url + CHAT, json=asking(slow.url(f"/{number}")), timeout=600)
            for number in range(24)
        ]
        try:
            eventually(lambda: trickle.now == media._FETCHES[2])
            for body in (BRIEF, asking(data_uri(png())), asking(good.url("/a.png")), asking(data_uri(png("blue")))):
                assert httpx.post(url + CHAT, json=body, timeout=60).status_code == 200
            assert not any(each.done() for each in waiting)
        finally:
            trickle.released.set()
        answers = [each.result() for each in waiting]
    good.close()
    assert {answer.status_code for answer in answers} == {400}
    assert trickle.most == media._FETCHES[2]
    assert trickle.total == 24


def test_an_address_that_sends_a_byte_now_and_then_ends_at_the_time_limit(slow: Server) -> None:
    trickle = Trickle()
    slow.answers["/slow"] = trickle
    with serving(tiny_llm(limits=ImageLimits(allow_private_addresses=True, fetch_timeout=0.4))) as url:
        answer = httpx.post(url + CHAT, json=asking(*[slow.url("/slow")] * 3, data_uri(png())), timeout=60)
    trickle.released.set()
    error = error_of(answer)
    assert (answer.status_code, error["code"]) == (400, "image_not_fetched")
    assert error["message"].startswith(
        "messages[0].content[0].image_url.url could not be fetched: 127.0.0.1 took longer"
    )
    assert trickle.total == 1  # equal addresses are fetched once


def test_fetches_are_limited_in_all_for_a_client_and_for_a_host(slow: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    trickle, other = Trickle(), Trickle()
    monkeypatch.setattr(media, "_FETCHES", (5, 4, 3))
    slow.answers |= {f"/{number}": trickle for number in range(4)}
    slow.answers |= {f"/other/{number}": other for number in range(4)}
    limits = ImageLimits(allow_private_addresses=True, fetch_timeout=600.0)
    with serving(tiny_llm(limits=limits), api_keys=KEYS) as url, ThreadPoolExecutor(9) as threads:

        def ask(key: str, address: str) -> int:
            headers = {"Authorization": f"Bearer {key}"}
            return httpx.post(url + CHAT, json=asking(address), headers=headers, timeout=600).status_code

        first = [threads.submit(ask, "one", slow.url(f"/{number}")) for number in range(4)]
        eventually(lambda: trickle.now == 3)
        first += [threads.submit(ask, "one", slow.url(f"/other/{number}", "localhost")) for number in range(3)]
        eventually(lambda: other.now == 1)
        second = threads.submit(ask, "two", slow.url("/other/3", "localhost"))
        eventually(lambda: other.now == 2)
        assert (trickle.now, other.now) == (3, 2)
        trickle.released.set()
        other.released.set()
        assert {each.result() for each in (*first, second)} == {400}
    assert (trickle.most, other.total) == (3, 4)


KEYS = "[[key]]\nname = 'one'\nkey = 'one'\n[[key]]\nname = 'two'\nkey = 'two'\n"
