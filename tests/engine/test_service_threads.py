"""The service's thread: starting and ending it, callers on threads of their own, forked processes."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from queue import SimpleQueue

import pytest

from ternvl.engine.engine import Engine
from ternvl.engine.request import Request
from ternvl.engine.service import Item, Service
from ternvl.errors import ContextLengthError, EngineError, OverloadedError, RequestError, UnavailableError
from ternvl.model.internvl import InternVL
from ternvl.params import SamplingParams
from ternvl.types import TokenOutput
from tests.engine.tiny import Answer, expected, make_engine, make_model, mixed_requests, text_prompt
from tests.waiting import eventually

LONG = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)
SHORT = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)


@pytest.fixture(scope="module")
def model() -> InternVL:
    return make_model()


def make_request(name: str, params: SamplingParams = LONG, num_tokens: int = 6) -> Request:
    return Request(name, text_prompt(random.Random(name), num_tokens), params)


def answers_of(service: Service, *requests: Request) -> dict[str, Answer]:
    answers = {request.id: Answer() for request in requests}
    for output in service.outputs(*requests):
        answers[output.request_id].take(output)
    return answers


def engine_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "ternvl-engine"}


def assert_is_free(engine: Engine) -> None:
    assert not engine.has_work
    assert engine.stats().num_free_blocks == engine.stats().num_blocks
    engine.check_integrity()


def test_a_second_start_changes_nothing(model: InternVL) -> None:
    before = engine_threads()
    service = Service(make_engine(model))
    assert not service.is_running
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: service.start(), range(8)))
    service.start()
    assert service.is_running
    assert len(engine_threads() - before) == 1
    request = make_request("a", SHORT)
    assert answers_of(service, request) == {"a": expected(model, request)}
    service.end()
    assert not service.is_running
    assert engine_threads() <= before


@pytest.mark.parametrize("how", ["close", "end"])
def test_a_service_that_was_closed_can_be_started_again(model: InternVL, how: str) -> None:
    service = Service(make_engine(model))
    request = make_request("a", SHORT)
    for _ in range(3):
        service.start()
        assert answers_of(service, request) == {"a": expected(model, request)}
        asyncio.run(service.close()) if how == "close" else service.end()
        assert not service.is_running
        with pytest.raises(UnavailableError, match="not running"):
            answers_of(service, request)


def test_a_start_while_requests_end_waits_for_them(model: InternVL) -> None:
    service = Service(make_engine(model))
    service.start()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(answers_of, service, make_request("a"))
        eventually(lambda: service.engine.has_work or waiting.done())
        service.stop()
        service.start()
        assert len(waiting.result()["a"].token_ids) == 400
    assert len(answers_of(service, make_request("b", SHORT))["b"].token_ids) == 4
    service.end()


def test_end_gives_requests_up_at_once(model: InternVL) -> None:
    service = Service(make_engine(model))
    service.start()
    outputs = service.outputs(make_request("a"))
    next(outputs)
    service.end()
    with pytest.raises(UnavailableError):
        list(outputs)
    assert not service.is_running
    assert_is_free(service.engine)  # type: ignore[arg-type]


def test_outputs_on_a_thread_are_those_of_submit(model: InternVL) -> None:
    requests = mixed_requests(seed=22, count=6)
    service = Service(make_engine(model, num_blocks=400))
    service.start()

    async def submitted() -> list[TokenOutput]:
        return [output async for output in service.submit(*requests)]

    def merged(outputs: list[TokenOutput]) -> dict[str, Answer]:
        answers = {request.id: Answer() for request in requests}
        for output in outputs:
            answers[output.request_id].take(output)
        return answers

    on_thread = list(service.outputs(*requests))
    assert merged(on_thread) == merged(asyncio.run(submitted()))
    assert merged(on_thread) == {request.id: expected(model, request, 512) for request in requests}
    service.end()


@pytest.mark.parametrize("num_taken", [0, 1, 30])
def test_leaving_outputs_early_frees_everything_before_the_next_line(model: InternVL, num_taken: int) -> None:
    engine = make_engine(model, num_blocks=400)
    service = Service(engine)
    service.start()
    with closing(service.outputs(make_request("a"), make_request("b"))) as outputs:
        for _ in range(num_taken):
            next(outputs)
    assert_is_free(engine)
    assert engine.stats().num_generated_tokens < 800
    service.end()


def test_an_error_of_one_of_several_requests_ends_them_all(model: InternVL) -> None:
    engine = make_engine(model)
    service = Service(engine)
    service.start()
    with pytest.raises(ContextLengthError):
        list(service.outputs(make_request("a"), make_request("b", num_tokens=600)))
    assert_is_free(engine)
    service.end()


def test_open_refuses_what_the_queue_cannot_hold(model: InternVL) -> None:
    engine = make_engine(model, max_num_seqs=1, max_queue=2)
    service, items = Service(engine), SimpleQueue[Item]()

    def put(item: Item) -> bool:
        items.put(item)
        return True

    with pytest.raises(UnavailableError, match="not running"):
        service.open((make_request("a"),), put)
    service.start()
    with pytest.raises(RequestError) as never:
        service.open(tuple(make_request(name) for name in "abc"), put)
    assert never.value.param == "n"
    groups = [service.open((make_request(name),), put) for name in "ab"]
    eventually(lambda: engine.stats().num_running == engine.stats().num_waiting == 1)
    with pytest.raises(OverloadedError) as full:
        service.open((make_request("c"), make_request("d")), put)
    assert full.value.retry_after >= 1
    for group in groups:
        service.close_group(group, has_ended=False)
    service.wait_for_orders()
    assert_is_free(engine)
    service.abort_all()
    with pytest.raises(UnavailableError):
        service.open((make_request("e"),), put)
    service.end()
    while not items.empty():
        assert isinstance(items.get(), TokenOutput)


def test_put_gets_what_the_engine_refuses_later(model: InternVL) -> None:
    service, items = Service(make_engine(model)), SimpleQueue[Item]()
    service.start()

    def put(item: Item) -> bool:
        items.put(item)
        return True

    group = service.open((make_request("long", num_tokens=600),), put)
    error = items.get(timeout=30)
    assert isinstance(error, ContextLengthError)
    service.close_group(group, has_ended=True)
    unread = service.open((make_request("unread"),), lambda item: False)
    eventually(lambda: service.engine.stats().num_prompt_tokens > 0 and not service.engine.has_work)
    assert service.engine.stats().num_generated_tokens < 400
    service.close_group(unread, has_ended=True)
    service.end()


def test_a_forked_process_must_load_the_model_itself(model: InternVL) -> None:
    service = Service(make_engine(model))
    service.start()
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer versions of Python warn of forks beside threads
        child = os.fork()
    if child == 0:
        try:
            service.start()
        except EngineError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        assert b"load it after the fork" in pipe.read()
    os.waitpid(child, 0)
    assert answers_of(service, make_request("a", SHORT))["a"] == expected(model, make_request("a", SHORT))
    service.end()
