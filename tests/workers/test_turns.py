"""Slots go round the clients, and nobody holds more than a share of them."""

from __future__ import annotations

from threading import Event, Thread

import pytest

from ternvl.errors import OverloadedError, UnavailableError
from ternvl.workers import turns
from ternvl.workers.turns import Slot, Turns
from tests.waiting import eventually


class Visitor:
    """A thread that takes a turn and keeps it until it is released."""

    def __init__(self, turns: Turns, log: list[str], *names: str) -> None:
        self._turns, self._log, self._names = turns, log, names
        self._release = Event()
        self._thread = Thread(target=self._run)
        before = len(turns._waiting) + sum(turns._held.values())
        self._thread.start()
        eventually(lambda: len(turns._waiting) + sum(turns._held.values()) > before)

    def _run(self) -> None:
        with self._turns.turn("", *self._names):
            self._log.append(self._names[-1])
            self._release.wait(60)

    def leave(self) -> None:
        self._release.set()
        self._thread.join(60)


def test_slots_go_round_the_clients() -> None:
    queue, log = Turns(1, 1), list[str]()
    visitors = [Visitor(queue, log, client) for client in ("a", "a", "a", "b", "b", "c")]
    for number in range(len(visitors)):
        eventually(lambda number=number: len(log) > number)
        next(each for each in visitors if not each._release.is_set() and each._names[0] == log[number]).leave()
    assert log == ["a", "b", "c", "a", "b", "a"]
    assert (queue._held, queue._latest, queue._waiting) == ({}, {}, [])


def test_within_a_client_slots_go_round_its_requests() -> None:
    queue, log = Turns(1, 1, 1), list[str]()
    visitors = [Visitor(queue, log, "a", request) for request in ("1", "1", "1", "2", "3")]
    for number in range(len(visitors)):
        eventually(lambda number=number: len(log) > number)
        next(each for each in visitors if not each._release.is_set() and each._names[1] == log[number]).leave()
    assert log == ["1", "2", "3", "1", "1"]
    assert (queue._held, queue._latest, queue._waiting) == ({}, {}, [])


def test_a_client_has_a_share_of_the_slots_and_a_request_a_share_of_the_clients() -> None:
    queue, log = Turns(4, 3, 2), list[str]()
    visitors = [Visitor(queue, log, "a", request) for request in ("1", "1", "1", "2", "2")]
    eventually(lambda: len(log) == 3)
    assert sorted(log) == ["1", "1", "2"]
    other = Visitor(queue, log, "b", "3")
    eventually(lambda: "3" in log)
    other.leave()
    for visitor in visitors:
        visitor.leave()
    assert sorted(log) == ["1", "1", "1", "2", "2", "3"]


def test_who_waits_too_long_is_told_and_leaves_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Turns(1)
    with queue.turn("image 1"):
        monkeypatch.setattr(turns, "PATIENCE", 0.01)
        with pytest.raises(OverloadedError, match=r"^image 2 has waited 0\.01 seconds"), queue.turn("image 2"):
            pass
    with queue.turn("image 3"):
        pass
    assert queue._num_free == 1


def test_who_waits_when_there_are_no_more_turns_is_refused() -> None:
    queue, refused = Turns(1), list[str]()

    def wait() -> None:
        with pytest.raises(UnavailableError, match="is stopping"), queue.turn("image 2"):
            pass
        refused.append("image 2")

    with queue.turn("image 1"):
        thread = Thread(target=wait)
        thread.start()
        eventually(lambda: bool(queue._waiting))
        queue.close()
        thread.join(60)
        assert refused == ["image 2"]
    with pytest.raises(UnavailableError), queue.turn("image 3"):
        pass
    assert queue._num_free == 1


def test_a_turn_that_moves_on_gives_its_slot_back_first() -> None:
    queue = Turns(1, 1, 1)
    with Slot(queue, "image 1") as slot:
        slot.take("a", "one.example.com")
        slot.take("a", "two.example.com")
        assert queue._held == {(0, "a"): 1, (1, "two.example.com"): 1}
    assert queue._num_free == 1
