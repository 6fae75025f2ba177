"""The service: many coroutines, leaving early, failures, closing."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing

import pytest
import torch

from ternvl.engine.engine import Engine
from ternvl.engine.request import Request
from ternvl.engine.service import Service
from ternvl.errors import (
    ContextLengthError,
    EngineError,
    OverloadedError,
    RequestError,
    RequestTimeoutError,
    UnavailableError,
)
from ternvl.model.internvl import InternVL
from ternvl.params import SamplingParams
from ternvl.types import FinishReason
from tests.engine.tiny import CONFIG, Answer, expected, make_engine, make_model, mixed_requests, text_prompt

LONG = SamplingParams(temperature=0, max_tokens=120, ignore_eos=True)


class Switch(InternVL):
    """A model that fails while `fails` is set."""

    fails = False

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.fails:
            raise RuntimeError("the model is broken")
        return super().logits(hidden)


@pytest.fixture
def model() -> Switch:
    model = Switch(CONFIG)
    model.load_state_dict(make_model().state_dict())
    return model.eval()


def make_request(name: str, params: SamplingParams = LONG, num_tokens: int = 6) -> Request:
    return Request(name, text_prompt(random.Random(name), num_tokens), params)


async def collect(service: Service, request: Request) -> Answer:
    answer = Answer()
    async for output in service.submit(request):
        answer.take(output)
    return answer


async def wait_until_idle(engine: Engine) -> None:
    while engine.has_work:
        await asyncio.sleep(0.005)


def test_concurrent_requests_get_their_own_answers(model: Switch) -> None:
    requests = mixed_requests(seed=21, count=9)

    async def main() -> list[Answer]:
        service = Service(make_engine(model, num_blocks=60))
        service.start()
        answers = await asyncio.gather(*(collect(service, request) for request in requests))
        await service.close()
        return answers

    assert asyncio.run(main()) == [expected(model, request, 240) for request in requests]


def test_outputs_come_one_by_one(model: Switch) -> None:
    async def main() -> list[int]:
        service = Service(make_engine(model))
        service.start()
        params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
        sizes = [len(output.token_ids) async for output in service.submit(make_request("a", params))]
        await service.close()
        return sizes

    assert asyncio.run(main()) == [1] * 5


@pytest.mark.parametrize("how", ["close", "cancel"])
def test_leaving_aborts(model: Switch, how: str) -> None:
    async def main() -> None:
        engine = make_engine(model, num_blocks=400)
        service = Service(engine)
        service.start()
        if how == "close":
            async with aclosing(service.submit(make_request("a"))) as outputs:
                async for _ in outputs:
                    break
        else:
            task = asyncio.create_task(collect(service, make_request("a")))
            while not engine.has_work:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await wait_until_idle(engine)
        stats = engine.stats()
        await service.close()
        assert stats.num_free_blocks == stats.num_blocks
        assert stats.num_generated_tokens < 120

    asyncio.run(main())


def test_a_request_cancelled_before_it_begins_leaves_nothing(model: Switch) -> None:
    async def main() -> None:
        engine = make_engine(model)
        service = Service(engine)
        service.start()
        tasks = [asyncio.create_task(collect(service, make_request(f"r{i}"))) for i in range(4)]
        await asyncio.sleep(0)
        for task in tasks[1:]:
            task.cancel()
        assert len((await tasks[0]).token_ids) == 120
        await service.close()
        assert engine.stats().num_generated_tokens < 240

    asyncio.run(main())


def test_failure_reaches_all_that_wait_and_it_serves_on(model: Switch) -> None:
    async def main() -> None:
        engine = make_engine(model)
        service = Service(engine)
        service.start()
        tasks = [asyncio.create_task(collect(service, make_request(f"r{i}"))) for i in range(3)]
        while engine.stats().num_running < 3:
            await asyncio.sleep(0.001)
        model.fails = True
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [EngineError] * 3
        assert "broken" not in str(results[0])
        model.fails = False
        request = make_request("after", SamplingParams(temperature=0, max_tokens=4, ignore_eos=True))
        assert await collect(service, request) == expected(model, request)
        await service.close()

    asyncio.run(main())


def test_failure_outside_the_model_is_survived(model: Switch, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        engine = make_engine(model)
        service = Service(engine)
        service.start()
        with monkeypatch.context() as patch:
            patch.setattr(engine.scheduler, "schedule", lambda: 1 // 0)
            results = await asyncio.gather(
                *(collect(service, make_request(f"r{i}")) for i in range(3)), return_exceptions=True
            )
        assert [type(result) for result in results] == [EngineError] * 3
        request = make_request("after", SamplingParams(temperature=0, max_tokens=4, ignore_eos=True))
        assert await collect(service, request) == expected(model, request)
        await service.close()

    asyncio.run(main())


def test_refusals_reach_their_own_request(model: Switch) -> None:
    async def main() -> None:
        engine = make_engine(model, max_num_seqs=1, max_queue=1)
        service = Service(engine)
        service.start()
        with pytest.raises(ContextLengthError):
            await collect(service, make_request("long", num_tokens=600))
        first = asyncio.create_task(collect(service, make_request("first")))
        while not engine.stats().num_running:
            await asyncio.sleep(0.001)
        second = asyncio.create_task(collect(service, make_request("second")))
        while not engine.stats().num_waiting:
            await asyncio.sleep(0.001)
        with pytest.raises(OverloadedError):
            await collect(service, make_request("third"))
        assert len((await first).token_ids) == len((await second).token_ids) == 120
        await service.close()

    asyncio.run(main())


def test_requests_are_taken_all_or_none(model: Switch) -> None:
    async def main() -> None:
        engine = make_engine(model, max_num_seqs=1, max_queue=2)
        service = Service(engine)
        service.start()
        first = asyncio.create_task(collect(service, make_request("first")))
        while not engine.stats().num_running:
            await asyncio.sleep(0.001)
        waiting = asyncio.create_task(collect(service, make_request("second")))
        while not engine.stats().num_waiting:
            await asyncio.sleep(0.001)
        with pytest.raises(OverloadedError) as refusal:
            await anext(service.submit(make_request("a"), make_request("b")))
        assert refusal.value.retry_after >= 1
        with pytest.raises(RequestError, match="only 2"):
            await anext(service.submit(*(make_request(name) for name in "abc")))
        await asyncio.gather(first, waiting)
        with pytest.raises(ContextLengthError):
            await anext(service.submit(make_request("a"), make_request("b", num_tokens=600)))
        await wait_until_idle(engine)
        stats = engine.stats()
        assert (stats.num_waiting, stats.num_free_blocks) == (0, stats.num_blocks)
        assert stats.num_generated_tokens == 240
        await service.close()

    asyncio.run(main())


def test_one_of_several_ends_early(model: Switch) -> None:
    async def main() -> None:
        service = Service(make_engine(model))
        service.start()
        answers = {"a": Answer(), "b": Answer()}
        async for output in service.submit(make_request("a"), make_request("b")):
            answers[output.request_id].take(output)
            if len(answers["a"].token_ids) == 3 and answers["a"].finish_reason is None:
                service.abort("a")
        assert answers["a"].finish_reason is FinishReason.ABORT
        assert len(answers["a"].token_ids) < len(answers["b"].token_ids) == 120
        await service.close()

    asyncio.run(main())


@pytest.mark.parametrize("reads", [True, False])
def test_a_deadline_frees_what_also_a_slow_reader_holds(model: Switch, reads: bool) -> None:
    async def main() -> None:
        engine = make_engine(model, num_blocks=400)
        service = Service(engine)
        service.start()
        params = SamplingParams(temperature=0, ignore_eos=True)
        deadline = asyncio.get_running_loop().time() + 0.05
        async with aclosing(service.submit(make_request("a", params), deadline=deadline)) as outputs:
            await anext(outputs)
            if not reads:
                await wait_until_idle(engine)
            with pytest.raises(RequestTimeoutError):
                [output async for output in outputs]
        await wait_until_idle(engine)
        await service.close()
        assert engine.stats().num_generated_tokens < 400

    asyncio.run(main())


def test_abort_all_tells_everyone(model: Switch) -> None:
    async def main() -> None:
        engine = make_engine(model, max_num_seqs=1)
        service = Service(engine)
        service.start()
        tasks = [asyncio.create_task(collect(service, make_request(f"r{i}"))) for i in range(3)]
        while not engine.stats().num_waiting:
            await asyncio.sleep(0.001)
        service.abort_all()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [UnavailableError] * 3
        with pytest.raises(UnavailableError):
            await collect(service, make_request("late"))
        await service.close()
        assert not engine.has_work

    asyncio.run(main())


def test_the_log_tells_what_goes_on_and_when_it_ends(model: Switch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    async def main() -> None:
        service = Service(make_engine(model, max_num_seqs=1), log_interval=0.01)
        service.start()
        await asyncio.gather(*(collect(service, make_request(f"r{i}")) for i in range(3)))
        while not caplog.messages or not caplog.messages[-1].startswith("running 0, waiting 0, KV 0 %"):
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)  # the line of the end may follow one of the last step
        count = len(caplog.messages)
        await asyncio.sleep(0.05)
        assert len(caplog.messages) == count, "an idle engine is silent"
        await service.close()

    asyncio.run(main())
    assert any(message.startswith("running 1, waiting ") for message in caplog.messages)
    assert {record.threadName for record in caplog.records} == {"ternvl-engine"}


def test_close_lets_requests_end_and_takes_no_more(model: Switch) -> None:
    async def main() -> None:
        engine = make_engine(model)
        service = Service(engine)
        service.start()
        task = asyncio.create_task(collect(service, make_request("a")))
        await asyncio.sleep(0.01)
        closing = asyncio.create_task(service.close())
        await asyncio.sleep(0)
        with pytest.raises(UnavailableError):
            await collect(service, make_request("b"))
        await closing
        assert len((await task).token_ids) == 120
        await service.close()

    asyncio.run(main())


def test_an_event_loop_that_is_gone_aborts(model: Switch) -> None:
    engine = make_engine(model)
    service = Service(engine)
    service.start()
    loop = asyncio.new_event_loop()
    outputs = service.submit(make_request("a"))
    loop.run_until_complete(anext(outputs))
    loop.close()
    asyncio.run(wait_until_idle(engine))
    asyncio.run(service.close())
    assert engine.stats().num_generated_tokens < 120


def test_a_request_with_a_known_id_is_refused_and_harms_nobody(model: Switch) -> None:
    async def main() -> None:
        service = Service(make_engine(model))
        service.start()
        first = asyncio.create_task(collect(service, make_request("a")))
        await asyncio.sleep(0)
        with pytest.raises(EngineError, match="could not take"):
            await collect(service, make_request("a"))
        assert len((await first).token_ids) == 120
        await service.close()

    asyncio.run(main())


def test_not_started(model: Switch) -> None:
    with pytest.raises(UnavailableError, match="not running"):
        asyncio.run(collect(Service(make_engine(model)), make_request("a")))
    asyncio.run(Service(make_engine(model)).close())
