"""How long a request would wait, by rates that are known to the test."""

from __future__ import annotations

import random

import pytest

from ternvl.engine.admission.backlog import Backlog
from ternvl.engine.admission.forecast import Forecast
from ternvl.engine.stats import EngineStats

STEP, PROMPT_TOKEN, TILE, ANSWER_TOKEN = 0.02, 0.001, 1.5, 0.003
IDLE = Backlog((), (), num_slots=2)


def made(steps: int = 200, *, mean: int = 10, accepted: int = 0) -> Forecast:
    """What one knows after steps of a machine with these rates, and answers with `mean` tokens."""
    forecast, rng = Forecast(), random.Random(1)
    before = EngineStats()
    for _ in range(steps):
        prompt, tiles, answers = rng.choice((0, 0, 17, 256)), rng.choice((0, 0, 1, 2)), rng.randrange(1, 9)
        after = EngineStats(
            num_steps=before.num_steps + 1,
            num_prefill_tokens=before.num_prefill_tokens + prompt,
            num_encoded_tiles=before.num_encoded_tiles + tiles,
            num_generated_tokens=before.num_generated_tokens + answers * (1 + accepted),
            num_accepted_tokens=before.num_accepted_tokens + answers * accepted,
        )
        seconds = STEP + prompt * PROMPT_TOKEN + tiles * TILE + answers * (1 + accepted) * ANSWER_TOKEN
        forecast.learn(before, after, seconds)
        before = after
    forecast.end(mean - 1)
    forecast.end(mean + 1)
    return forecast


def test_the_rates_are_those_of_the_machine() -> None:
    rates = made().rates()
    assert (rates.step, rates.prompt_token, rates.tile, rates.answer_token) == pytest.approx(
        (STEP, PROMPT_TOKEN, TILE, ANSWER_TOKEN)
    )


def test_one_step_that_was_held_up_changes_little() -> None:
    forecast = made()
    forecast.learn(EngineStats(), EngineStats(num_steps=1, num_generated_tokens=1), 60.0)
    assert forecast.rates().tile == pytest.approx(TILE, rel=0.05)


def test_no_rate_is_below_zero() -> None:
    forecast, before = Forecast(), EngineStats()
    for number, seconds in enumerate((1.0, 0.8, 0.6, 0.4), start=1):
        after = EngineStats(num_steps=number, num_generated_tokens=before.num_generated_tokens + number)
        forecast.learn(before, after, seconds)
        before = after
    rates = forecast.rates()
    assert min(rates.step, rates.prompt_token, rates.tile, rates.answer_token) == 0
    assert rates.step > 0.4


def test_nothing_is_predicted_before_a_step_and_an_answer_have_ended() -> None:
    forecast = Forecast()
    assert forecast.wait(IDLE) is None
    forecast.end(5)
    assert forecast.wait(IDLE) is None
    forecast.learn(EngineStats(), EngineStats(), 9.0)
    assert forecast.wait(IDLE) is None, "a step that failed teaches nothing"
    forecast.learn(EngineStats(), EngineStats(num_steps=1, num_generated_tokens=1), 1.0)
    assert forecast.wait(IDLE) == 0


@pytest.mark.parametrize(
    ("backlog", "seconds"),
    [
        (IDLE, 0.0),
        (Backlog(((0, 99),), (), 2), 0.0),
        # A prompt of 5,000 tokens and 12 tiles in 20 steps, although a slot is free.
        (Backlog(((0, 99),), (), 2, 5_000, 12, 20), 20 * STEP + 5_000 * PROMPT_TOKEN + 12 * TILE),
        # The first to end has 3 tokens to go.
        (Backlog(((0, 99), (7, 99)), (), 2), 3 * (STEP + 2 * ANSWER_TOKEN)),
        # An answer that is longer than they are on average may end with each token.
        (Backlog(((0, 99), (50, 99)), (), 2), STEP + 2 * ANSWER_TOKEN),
        # An answer is no longer than it may be.
        (Backlog(((0, 4), (0, 99)), (), 2), 4 * (STEP + 2 * ANSWER_TOKEN)),
        # One after another in one slot: 10, 2 and 10 tokens.
        (Backlog(((0, 99),), (2, 99), 1), 22 * (STEP + ANSWER_TOKEN)),
        # In two slots: [10, 10 -> 20] and [10, 2 -> 12].
        (Backlog(((0, 99), (0, 99)), (99, 2), 2), 12 * (STEP + 2 * ANSWER_TOKEN)),
        # The slots are free for all who wait; only their prompts are in the way.
        (Backlog((), (99, 99, 99), 8, 300, 0, 2), 2 * STEP + 300 * PROMPT_TOKEN),
    ],
)
def test_the_wait_is_the_work_before_a_request_at_these_rates(backlog: Backlog, seconds: float) -> None:
    assert made().wait(backlog) == pytest.approx(seconds)


def test_drafts_that_hold_shorten_the_wait() -> None:
    backlog = Backlog(((0, 99),), (), 1)
    assert made(accepted=3).wait(backlog) == pytest.approx(10 / 4 * STEP + 10 * ANSWER_TOKEN)
