"""Prompts and grammars are made on threads: deadlines, and what waits for what."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from ternvl.prompt import build
from tests.server.calling import BRIEF, CHAT, error_of
from tests.server.fakes import serving, tiny_llm


def test_a_prompt_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(build, "fetch", lambda *_: release.wait(30))
    part = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    with serving(tiny_llm(), request_timeout=0.2) as url:
        pictures = {**BRIEF, "stream": True, "messages": [{"role": "user", "content": [part]}]}
        response = httpx.post(url + CHAT, json=pictures, timeout=30)
        release.set()
    assert response.status_code == 504
    assert error_of(response)["code"] == "request_timeout"


def test_text_does_not_wait_for_images(monkeypatch: pytest.MonkeyPatch) -> None:
    fetching, release = threading.Event(), threading.Event()

    def slow(*_: Any) -> bytes:
        fetching.set()
        release.wait(30)
        return b""

    monkeypatch.setattr(build, "fetch", slow)
    part = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    pictures = {**BRIEF, "messages": [{"role": "user", "content": [part]}]}
    with serving(tiny_llm(), prompt_workers=1) as url, ThreadPoolExecutor() as pool:
        waiting = pool.submit(httpx.post, url + CHAT, json=pictures, timeout=60)
        try:
            assert fetching.wait(30)
            assert httpx.post(url + CHAT, json=BRIEF, timeout=30).status_code == 200
        finally:
            release.set()
        assert waiting.result().status_code == 400
