"""The sliding window, against plain recomputation over all that was ever used."""

from __future__ import annotations

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ternvl.server.errors import HTTPError
from ternvl.server.guard.caller import Caller
from ternvl.server.guard.keys import Key
from ternvl.server.guard.quota import WINDOW, Budget, Window
from ternvl.server.guard.rate import limit_headers


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)), max_size=60), st.integers(1, 40))
def test_a_window_is_the_sum_of_the_last_minute(uses: list[tuple[int, int]], limit: int) -> None:
    """Whatever a key does, it is refused exactly if the last minute holds too much, and accepted when it was told."""
    clock = Clock()
    window = Window(clock)
    accepted: list[tuple[float, int]] = []
    for pause, amount in uses:
        clock.now += pause
        used = sum(each for when, each in accepted if when > clock.now - WINDOW)
        assert window.used == used
        wait = window.seconds_until(used + amount - limit)
        if amount <= limit:
            later = clock.now + ceil(wait)
            assert sum(each for when, each in accepted if when > later - WINDOW) + amount <= limit
            sooner = clock.now + ceil(wait) - 1
            if wait:
                assert sum(each for when, each in accepted if when > sooner - WINDOW) + amount > limit
        if not wait:
            window.add(amount)
            accepted.append((clock.now, amount))
    assert window.seconds_until_empty == max(
        [0.0] + [when + WINDOW - clock.now for when, each in accepted if when > clock.now - WINDOW and each]
    )


def test_what_is_taken_back_was_never_used() -> None:
    clock = Clock()
    window = Window(clock)
    first = window.add(5)
    clock.now += 1
    window.add(2)
    window.take_back(first, 5)
    assert (window.used, window.seconds_until(1)) == (2, 60)
    clock.now += 60
    assert window.used == 0
    window.take_back(first, 5)
    assert window.used == 0, "it is older than the window"


def test_a_window_stays_small() -> None:
    clock = Clock()
    window = Window(clock)
    for _ in range(100_000):
        clock.now += 0.001
        window.add(1)
    assert len(window._uses) <= 1_300
    assert window.used == pytest.approx(60_000, abs=60), "what is merged counts from its latest part on"


def make_caller(**limits: int) -> tuple[Caller, Clock]:
    clock = Clock()
    return Caller(Key("team", b"", **limits), Budget(clock)), clock  # type: ignore[arg-type]


def refusal(caller: Caller, *tokens: int) -> HTTPError:
    with pytest.raises(HTTPError) as caught:
        caller.reserve(*tokens)
    return caught.value


def test_answers_reserve_what_they_may_need_and_pay_for_what_they_use() -> None:
    caller, clock = make_caller(tokens_per_minute=100)
    first = caller.reserve(10, 30)
    assert caller.budget.tokens_left(100) == 60
    clock.now += 10
    second = caller.reserve(20, 1000)
    assert first
    assert second
    assert caller.budget.tokens_left(100) == 0, "an answer without a limit reserves all that is left"
    assert refusal(caller, 1, 1).status == 429
    first.spend(5)
    assert caller.budget.tokens_left(100) == 0
    first.end()
    assert caller.budget.tokens_left(100) == 25
    second.spend(4)
    second.end()
    second.end()
    assert caller.budget.tokens_left(100) == 100 - 10 - 5 - 20 - 4
    refused = refusal(caller, 70, 1)
    assert (refused.status, refused.headers["Retry-After"]) == (429, "50"), "when the first prompt is a minute old"
    clock.now += 49.9
    assert refusal(caller, 70, 1).headers["Retry-After"] == "1"
    clock.now += 0.1
    third = caller.reserve(70, 1)
    assert third
    third.cancel()
    third.end()
    assert caller.budget.tokens_left(100) == 100 - 5 - 20 - 4, "a refused request costs nothing"


def test_an_answer_is_not_cut_and_its_excess_counts() -> None:
    caller, clock = make_caller(tokens_per_minute=50)
    running = caller.reserve(10, 1000)
    assert running
    for _ in range(100):
        running.spend(1)
    running.end()
    assert caller.budget.tokens_left(50) == -60
    assert dict(limit_headers(caller))["x-ratelimit-remaining-tokens"] == "0"
    clock.now += 59
    assert refusal(caller, 1, 1).headers["Retry-After"] == "1"
    clock.now += 1
    assert caller.reserve(1, 1)


def test_a_prompt_that_never_fits_is_no_matter_of_time() -> None:
    caller, _ = make_caller(tokens_per_minute=50)
    refused = refusal(caller, 50, 1)
    assert (refused.status, refused.code, refused.headers) == (400, "token_budget_exceeded", {})


def test_without_limits_nothing_is_counted() -> None:
    caller, _ = make_caller()
    assert caller.reserve(10**9, 10**9) is None
    caller.check_requests()
    assert dict(limit_headers(caller)) == {}


def test_headers_say_what_is_left() -> None:
    caller, clock = make_caller(requests_per_minute=3, tokens_per_minute=100)
    caller.budget.requests.add(1)
    reserved = caller.reserve(10, 20)
    clock.now += 1.5
    assert dict(limit_headers(caller)) == {
        "x-ratelimit-limit-requests": "3",
        "x-ratelimit-remaining-requests": "2",
        "x-ratelimit-reset-requests": "58.500s",
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "70",
        "x-ratelimit-reset-tokens": "58.500s",
    }
    assert reserved
