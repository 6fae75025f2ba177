"""The evaluation of the helpers: right results score 1, wrong ones 0, and refused answers too."""

from __future__ import annotations

import random
from typing import Any, cast

import pytest
from PIL import Image

from ternvl.errors import UnparsableAnswer
from ternvl.llm import LLM
from ternvl.tasks import Action, Box, Finding, Point, Tasks
from training import __main__ as command
from training.export import EMBEDDED
from training.growth import evaluate, pairs, parts, screens
from training.growth.evaluate import HELPER_TASKS, HelperQuestion, helper_questions
from training.language_stage import TOKENIZER
from training.scenes import random_scene

SEEDS = range(6)


class Fake:
    """A client whose helpers all return one result."""

    def __init__(self, result: Any) -> None:
        self.result = result
        self.asked: list[Any] = []

    def __getattr__(self, _: str) -> Any:
        def helper(*given: Any, **named: Any) -> Any:
            self.asked.append(given)
            return self.result

        return helper


def score(question: HelperQuestion, result: Any) -> float:
    return question.ask(cast(Tasks, Fake(result)))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_click_within_its_widget_is_right(seed: int) -> None:
    rng = random.Random(seed)
    screen = screens.random_screen(rng)
    box = screen.items[rng.randrange(len(screen.items))].box
    middle = Point(int((box[0] + box[2]) / 2 * screen.width), int((box[1] + box[3]) / 2 * screen.height))
    question = HELPER_TASKS["click: widget"](random.Random(seed), True)
    assert score(question, Action("pyautogui.click", "", middle)) == 1
    outside = Point(int(box[0] * screen.width) - 2, middle.y)
    assert score(question, Action("pyautogui.click", "", outside)) == 0
    assert score(question, Action("pyautogui.press", "")) == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_boxes_score_their_overlap(seed: int) -> None:
    rng = random.Random(seed)
    scene = random_scene(rng, rng.choice((1, 2, 3)))
    x1, y1, x2, y2 = rng.choice(scene.items).box
    w, h = scene.width, scene.height
    question = HELPER_TASKS["ground: object (mean IoU)"](random.Random(seed), True)
    assert score(question, [Box(round(x1 * w), round(y1 * h), round(x2 * w), round(y2 * h))]) > 0.8
    assert score(question, [Box(round(x1 * w), round(y1 * h), round((x1 + x2) / 2 * w), round(y2 * h))]) < 0.6


@pytest.mark.parametrize("seed", SEEDS)
def test_inspections_are_compared_with_the_truth(seed: int) -> None:
    rng = random.Random(seed)
    part = parts.random_part(rng)
    is_good = parts.check(rng, part).answer == "Yes."
    question = HELPER_TASKS["inspect: passed or failed"](random.Random(seed), True)
    assert [score(question, [Finding("", passed)]) for passed in (is_good, not is_good)] == [1, 0]
    named = HELPER_TASKS["inspect: defect named"](random.Random(seed), True)
    reasons = [f"A part with a {kind}." for kind in parts.DEFECTS]
    assert sum(score(named, [Finding("", passed=False, reason=reason)]) for reason in reasons) == 1
    assert score(named, [Finding("", passed=True)]) == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_comparisons_are_compared_with_the_truth(seed: int) -> None:
    _, turn = pairs.what_moved(random.Random(seed))
    question = HELPER_TASKS["compare: what moved"](random.Random(seed), True)
    assert score(question, turn.answer) == 1
    assert score(question, "The moon moved.") == 0


def test_refused_answers_score_nothing() -> None:
    def refused(_: Tasks) -> float:
        raise UnparsableAnswer("is nothing", "?")

    assert HelperQuestion(refused).ask(cast(Tasks, Fake(None))) == 0


def test_points_count_whole_pixels() -> None:
    image = Image.new("RGB", (10, 10))
    assert [evaluate.is_within(Point(x, 5), (0.2, 0, 0.5, 1), image) for x in (1, 2, 4, 5)] == [0, 1, 1, 0]
    assert evaluate.is_within(None, (0, 0, 1, 1), image) == 0


def test_every_question_can_be_asked_of_the_embedded_model() -> None:
    with Tasks(LLM(), max_tokens=60) as client:
        for task in HELPER_TASKS:
            (question,) = helper_questions(task, True, 1)
            assert 0 <= question.ask(client) <= 1


def test_the_command_goes_on_from_the_published_checkpoint_or_from_stage_three() -> None:
    (from_published, export, *_), (after, other_export, *_) = (
        command.commands(1.0, from_published=flag) for flag in (True, False)
    )
    assert from_published[2] == after[2] == "training.growth.stage"
    for line, folder in ((from_published, EMBEDDED), (export, EMBEDDED), (after, TOKENIZER), (other_export, TOKENIZER)):
        assert line[line.index("--tokenizer") + 1] == str(folder)
    assert "--resume" not in from_published
    assert after[after.index("--resume") + 1] == "runs/joint.pt"
