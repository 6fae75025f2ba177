"""Streams of `Azion.AI.run` in Python: whoever leaves one ends the answer in the engine."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from ternvl.azion import Azion, AzionStream
from ternvl.llm import LLM
from tests.server.fakes import scripted_llm, serving
from tests.waiting import eventually

MODEL = "opengvlab-internvl3-1b-instruct"
REQUEST = {"messages": [{"role": "user", "content": "Go on"}]}
STREAM = {**REQUEST, "stream": True}


async def collect(stream: AzionStream) -> list[dict[str, Any]]:
    return [chunk async for chunk in stream]


@pytest.fixture(params=["server", "in process"])
def endless(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[LLM]:
    """A model that never ends by itself, behind `Azion.AI.run`."""
    llm = scripted_llm("On and on. ", endless=True)
    if request.param == "in process":
        monkeypatch.delenv("TERNVL_BASE_URL", raising=False)
        monkeypatch.setenv("TERNVL_MODEL", f"endless-{id(llm)}")
        monkeypatch.setattr("ternvl.llm.LLM", lambda model: llm)
        yield llm
    else:
        with serving(llm) as url:
            monkeypatch.setenv("TERNVL_BASE_URL", f"{url}/v1")
            yield llm


async def leave_the_loop(stream: AzionStream) -> None:
    async for chunk in stream:
        assert chunk["choices"]
        break


async def leave_the_bytes(stream: AzionStream) -> None:
    async for piece in stream.bytes():
        assert piece.startswith(b"data: {")
        break


async def leave_the_context(stream: AzionStream) -> None:
    async with stream:
        await anext(stream)
        await anext(stream)


async def close(stream: AzionStream) -> None:
    await stream.aclose()
    await stream.aclose()
    assert await collect(stream) == []


async def close_under_a_reader(stream: AzionStream) -> None:
    reader = asyncio.create_task(collect(stream))
    await asyncio.sleep(0.05)
    await stream.aclose()
    assert await reader


async def cancel_a_reader(stream: AzionStream) -> None:
    reader = asyncio.create_task(collect(stream))
    await asyncio.sleep(0.05)
    reader.cancel()
    assert isinstance((await asyncio.gather(reader, return_exceptions=True))[0], asyncio.CancelledError)


async def do_nothing(stream: AzionStream) -> None:
    """The stream is dropped."""


LEAVING = [leave_the_loop, leave_the_bytes, leave_the_context, close, close_under_a_reader, cancel_a_reader, do_nothing]


@pytest.mark.parametrize("leave", LEAVING)
def test_leaving_a_stream_ends_the_answer(endless: LLM, leave: Callable[[AzionStream], Awaitable[None]]) -> None:
    async def begin_and_leave() -> None:
        await leave(await Azion.AI.run(MODEL, STREAM))
        await asyncio.to_thread(eventually, lambda: not endless.engine.has_work)  # while this loop runs on

    asyncio.run(begin_and_leave())
    assert len(endless.engine.aborted) == 1  # type: ignore[union-attr]


def test_a_loop_that_ends_before_its_stream(endless: LLM) -> None:
    async def begin() -> AzionStream:
        stream: AzionStream = await Azion.AI.run(MODEL, STREAM)
        await anext(stream)
        return stream

    stream = asyncio.run(begin())
    eventually(lambda: not endless.engine.has_work)
    del stream
    gc.collect()


@pytest.mark.parametrize("request_", [REQUEST, STREAM])
def test_a_cancelled_call(endless: LLM, request_: dict[str, Any]) -> None:
    async def impatient() -> None:
        call = asyncio.create_task(Azion.AI.run(MODEL, {**request_, "max_tokens": 400}))
        await asyncio.to_thread(eventually, lambda: endless.engine.has_work)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)

    asyncio.run(impatient())
    eventually(lambda: not endless.engine.has_work)


def test_chunks_come_while_the_answer_is_computed(endless: LLM) -> None:
    async def first() -> bool:
        async with await Azion.AI.run(MODEL, STREAM) as stream:
            await anext(stream)
            return endless.engine.has_work

    assert asyncio.run(first())
