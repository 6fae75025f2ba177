"""Lending the engine: who gets it, who is served by it, and what an interrupted step leaves."""

from __future__ import annotations

import threading
from functools import partial
from queue import SimpleQueue

import pytest

from ternvl.engine.engine import Engine
from ternvl.engine.loan import Loan
from ternvl.engine.service import Item, RequestGroup, Service
from ternvl.errors import EngineError, UnavailableError
from ternvl.types import TokenOutput
from tests.engine.test_service_threads import LONG, SHORT, answers_of, assert_is_free, make_request
from tests.engine.tiny import Answer, expected, make_engine, make_model
from tests.waiting import eventually

MODEL = make_model()


class Watched(Engine):
    """An engine that records which threads run its steps, and interrupts one step on request."""

    interrupts_at = 0

    def step(self) -> list[TokenOutput]:
        self.steppers = [*getattr(self, "steppers", []), threading.current_thread()]
        return super().step()

    def _run(self, schedule: object) -> list[object]:  # type: ignore[override]
        drawn = super()._run(schedule)  # type: ignore[arg-type]
        if len(self.steppers) == self.interrupts_at:
            raise KeyboardInterrupt
        return drawn  # type: ignore[return-value]


@pytest.fixture
def engine() -> Watched:
    engine = make_engine(MODEL, num_blocks=400)
    engine.__class__ = Watched
    return engine  # type: ignore[return-value]


@pytest.fixture
def service(engine: Watched) -> Service:
    service = Service(engine)
    service.start()
    return service


def send(service: Service, name: str, inbox: SimpleQueue[Item], params: object = SHORT) -> RequestGroup:
    def put(item: Item) -> bool:
        inbox.put(item)
        return True

    return service.open((make_request(name, params),), put)  # type: ignore[arg-type]


def read(service: Service, loan: Loan, name: str, params: object = SHORT) -> Answer:
    inbox, answer = SimpleQueue[Item](), Answer()
    group = send(service, name, inbox, params)
    while answer.finish_reason is None:
        item = loan.next(inbox)
        assert isinstance(item, TokenOutput)
        answer.take(item)
    service.close_group(group, has_ended=True)
    return answer


def test_a_waiting_thread_runs_the_steps_call_after_call(service: Service, engine: Watched) -> None:
    for name in "abcdefgh":
        with service.borrow() as loan:
            assert loan.is_mine
            assert read(service, loan, name) == expected(MODEL, make_request(name, SHORT))
    assert set(engine.steppers) == {threading.current_thread()}
    assert_is_free(engine)
    service.end()


def test_the_engine_is_lent_to_one_thread_at_a_time(service: Service, engine: Watched) -> None:
    def ask(name: str, answers: list[Answer]) -> None:
        with service.borrow() as loan:
            assert not loan.is_mine
            answers.append(read(service, loan, name))

    answers: list[Answer] = []
    with service.borrow() as loan:
        other = threading.Thread(target=ask, args=("b", answers))
        other.start()
        eventually(lambda: not service._loop._orders.empty())
        read(service, loan, "a", LONG)
        other.join(60)
    assert answers == [expected(MODEL, make_request("b", SHORT))]
    assert threading.current_thread() in engine.steppers
    assert other not in engine.steppers
    service.end()


def test_work_that_the_borrower_leaves_goes_on_by_itself(service: Service, engine: Watched) -> None:
    inbox = SimpleQueue[Item]()
    with service.borrow() as loan:
        group = send(service, "rest", inbox, LONG)
        read(service, loan, "a")
    rest = Answer()
    while rest.finish_reason is None:
        item = inbox.get(timeout=60)
        assert isinstance(item, TokenOutput)
        rest.take(item)
    service.close_group(group, has_ended=True)
    assert rest == expected(MODEL, make_request("rest", LONG), 512)
    assert len(set(engine.steppers)) == 2
    service.end()


def test_a_busy_engine_is_not_lent(service: Service, engine: Watched) -> None:
    inbox = SimpleQueue[Item]()
    group = send(service, "busy", inbox, LONG)
    eventually(lambda: engine.has_work)
    with service.borrow() as loan:
        assert not loan.is_mine
        assert read(service, loan, "a") == expected(MODEL, make_request("a", SHORT))
    assert threading.current_thread() not in engine.steppers
    service.close_group(group, has_ended=False)
    service.end()


def test_an_interrupted_step_drops_all_requests_and_leaves_a_sound_engine(service: Service, engine: Watched) -> None:
    engine.steppers, engine.interrupts_at = [], 3
    others = SimpleQueue[Item]()
    with service.borrow() as loan:
        send(service, "other", others, LONG)
        with pytest.raises(KeyboardInterrupt):
            read(service, loan, "a", LONG)
    while isinstance(item := others.get(timeout=60), TokenOutput):
        pass
    assert isinstance(item, EngineError)
    assert "interrupted" in str(item)
    assert_is_free(engine)
    assert answers_of(service, make_request("a", SHORT)) == {"a": expected(MODEL, make_request("a", SHORT))}
    service.end()


def test_a_service_that_is_closed_meanwhile_ends_after_the_loan(service: Service, engine: Watched) -> None:
    with service.borrow() as loan:
        inbox = SimpleQueue[Item]()
        group = send(service, "a", inbox, LONG)
        loan.next(inbox)
        service.stop()
        answer = Answer()
        while answer.finish_reason is None:
            item = loan.next(inbox)
            assert isinstance(item, TokenOutput)
            answer.take(item)
        service.close_group(group, has_ended=True)
        with pytest.raises(UnavailableError):
            send(service, "b", inbox)
        assert service.is_running
    eventually(lambda: not service.is_running)


def test_a_borrower_waits_for_its_own_orders(service: Service, engine: Watched) -> None:
    done: list[int] = []
    with service.borrow() as loan:
        assert loan.is_mine
        service._loop.order(partial(done.append, 1))
        service.wait_for_orders()
        assert done == [1]
    service.end()
