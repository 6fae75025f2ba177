"""Prompts and grammars are made on threads: deadlines, and what waits for what."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from PIL import Image

from ternvl.answer.ask import Ask
from ternvl.config import ServerConfig
from ternvl.errors import ContextLengthError, ImageError, RequestTimeoutError, VideoError
from ternvl.llm import LLM
from ternvl.params import Grammar, SamplingParams
from ternvl.prompt import media
from ternvl.prompt.messages import ImageInput, Message
from ternvl.prompt.parts import VideoInput
from ternvl.server.metrics.recorder import Metrics, Served
from ternvl.server.threads import Threads
from tests.server.calling import BRIEF, CHAT, error_of
from tests.server.fakes import serving, tiny_llm


def test_a_prompt_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(media, "fetch", lambda *_, **__: release.wait(30))
    part = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    with serving(tiny_llm(), request_timeout=0.2) as url:
        pictures = {**BRIEF, "stream": True, "messages": [{"role": "user", "content": [part]}]}
        response = httpx.post(url + CHAT, json=pictures, timeout=30)
        release.set()
    assert response.status_code == 504
    assert error_of(response)["code"] == "request_timeout"


def test_text_does_not_wait_for_images(monkeypatch: pytest.MonkeyPatch) -> None:
    fetching, release = threading.Event(), threading.Event()

    def slow(*_: Any, **__: Any) -> bytes:
        fetching.set()
        release.wait(30)
        return b""

    monkeypatch.setattr(media, "fetch", slow)
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


HELLO = Ask(input=[Message("user", "hi")], params=SamplingParams())
YES = Ask(input=[Message("user", "hi")], params=SamplingParams(grammar=Grammar.of("choice", ["yes"])))


class Blocker:
    """Work that does not end before it is released."""

    def __init__(self) -> None:
        self.started, self.released = threading.Event(), threading.Event()

    def __call__(self, *_: Any, **__: Any) -> None:
        self.started.set()
        assert self.released.wait(30)


@pytest.fixture
def blocker() -> Iterator[Blocker]:
    blocker = Blocker()
    yield blocker
    blocker.released.set()


def in_loop(llm: LLM, work: Callable[[Threads], Awaitable[None]]) -> None:
    async def main() -> None:
        metrics = Metrics(llm.engine.stats, Served("tiny", {}, {}, 1))
        threads = Threads(llm, ServerConfig(max_concurrent_requests=4, prompt_workers=1), metrics)
        await work(threads)
        threads.close()

    asyncio.run(main())


def test_work_returns_its_value_or_raises_its_own_error() -> None:
    def fail() -> None:
        raise TimeoutError("of the work itself")

    async def work(threads: Threads) -> None:
        deadline = asyncio.get_running_loop().time() + 30
        assert await threads.run(lambda: 5) == await threads.run(lambda: 5, deadline=deadline) == 5
        with pytest.raises(TimeoutError, match="of the work itself"):
            await threads.run(fail, deadline=deadline)

    in_loop(tiny_llm(), work)


def test_work_past_its_deadline_is_given_up(blocker: Blocker) -> None:
    async def work(threads: Threads) -> None:
        loop, begin = asyncio.get_running_loop(), time.monotonic()
        with pytest.raises(RequestTimeoutError):
            await threads.run(blocker, deadline=loop.time() + 0.05)
        with pytest.raises(RequestTimeoutError):
            await threads.prepare(HELLO, deadline=loop.time() - 1)
        assert time.monotonic() - begin < 20
        blocker.released.set()

    in_loop(tiny_llm(), work)


def test_a_prepared_ask_has_its_prompt_and_its_grammar() -> None:
    llm = tiny_llm()

    async def work(threads: Threads) -> None:
        plain, formed = await threads.prepare(HELLO), await threads.prepare(YES)
        built = await threads.build_prompt(HELLO)
        assert plain.prompt.token_ids == formed.prompt.token_ids == built.token_ids
        assert (plain.grammar, plain.params) == (None, HELLO.params)
        assert formed.grammar is llm.grammars.compile(Grammar.of("choice", ["yes"]))
        with pytest.raises(ContextLengthError) as refusal:
            await threads.prepare(Ask(input=[7] * 600, params=SamplingParams(), path="prompt"))
        assert refusal.value.param == "prompt"

    in_loop(llm, work)


def test_a_slow_grammar_delays_other_grammars_alone(blocker: Blocker, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = tiny_llm()
    monkeypatch.setattr(llm.grammars, "compile", blocker)

    async def work(threads: Threads) -> None:
        slow = [asyncio.create_task(threads.prepare(YES)) for _ in range(3)]
        assert await asyncio.to_thread(blocker.started.wait, 30)
        assert (await threads.prepare(HELLO)).prompt.num_tokens > 0
        assert not any(task.done() for task in slow)
        blocker.released.set()
        assert [each.grammar for each in await asyncio.gather(*slow)] == [None] * 3

    in_loop(llm, work)


def test_images_are_built_while_all_threads_for_videos_are_busy(
    blocker: Blocker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media, "fetch", lambda *_, **__: blocker() or b"no video")
    watching = Ask(input=[Message("user", "?", (VideoInput("https://example.com/a.mp4"),))], params=SamplingParams())
    seeing = Ask(input=[Message("user", "?", (ImageInput(Image.new("RGB", (9, 9))),))], params=SamplingParams())

    async def work(threads: Threads) -> None:
        videos = [asyncio.create_task(threads.build_prompt(watching)) for _ in range(2)]
        assert await asyncio.to_thread(blocker.started.wait, 30)
        for _ in range(8):
            assert (await threads.build_prompt(seeing)).num_image_tokens > 0
        assert not any(task.done() for task in videos)
        blocker.released.set()
        assert [type(error) for error in await asyncio.gather(*videos, return_exceptions=True)] == [VideoError] * 2

    in_loop(tiny_llm(), work)


def test_text_is_built_while_all_threads_for_images_are_busy(blocker: Blocker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "fetch", lambda *_, **__: blocker() or b"no image")
    seeing = Ask(input=[Message("user", "?", (ImageInput("https://example.com/a.png"),))], params=SamplingParams())

    async def work(threads: Threads) -> None:
        images = [asyncio.create_task(threads.build_prompt(seeing)) for _ in range(2)]
        assert await asyncio.to_thread(blocker.started.wait, 30)
        for _ in range(8):
            assert (await threads.build_prompt(HELLO)).num_tokens > 0
        assert not any(task.done() for task in images)
        blocker.released.set()
        assert [type(error) for error in await asyncio.gather(*images, return_exceptions=True)] == [ImageError] * 2

    in_loop(tiny_llm(), work)
