"""When refused clients are asked to return."""

from __future__ import annotations

from ternvl.server.guard.returns import Returns


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_clients_are_asked_one_after_another() -> None:
    clock = Clock()
    returns = Returns(lambda places: 3 * places, clock)
    told = []
    for _ in range(4):
        told.append(returns.next())
        returns.expect(told[-1])
    assert told == [3, 6, 9, 12]
    assert returns.next() == returns.next() == 15, "asking alone is no promise"
    clock.now = 6
    assert returns.next() == 9, "two have returned"


def test_no_more_clients_are_remembered_than_an_estimate_needs() -> None:
    returns = Returns(lambda places: places, Clock())
    for _ in range(10_000):
        returns.expect(5)
    assert returns.next() == 4_097
