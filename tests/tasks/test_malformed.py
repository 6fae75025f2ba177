"""No answer of a model makes a task raise anything but UnparsableAnswer, or run anything."""

from __future__ import annotations

import asyncio
import builtins
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pydantic
import pytest
from PIL import Image

from ternvl.tasks import Action, AsyncTasks, Box, Finding, Point, Tasks, UnparsableAnswer
from tests.counts import count
from tests.tasks.scripted import CALLS, OPTIONS, SCHEMA, ScriptedBackend, picture, result_of

Image.init()  # its plugins, like pydantic's classes, are made by what the tests forbid


class Invoice(pydantic.BaseModel):
    total: float


MUTATIONS = count("TERNVL_MALFORMED")
"""The number of damaged answers that each task is given, beside those that are written down here."""

GARBAGE = (
    "", " ", "\n\n\t", "\0", "\x00\x01\x02", "\ufeff", "\ud800", "💥" * 50, "ﷺ", "你好", "a" * 30_000, "[" * 5_000,
    "(" * 5_000, "{" * 5_000, '"' * 999, "\\" * 999, "'" * 1_001, "`" * 99, "```", "```json\n", "```\n\n```", "null",
    "NaN", "Infinity", "-Infinity", "true", "[]", "{}", "[[]]", "[[[[]]]]", "()", "...", "?", "I cannot see that.",
    "<ref>", "</ref>", "<box>", "</box>", "<box></box>", "<ref></ref><box></box>", "<box>[[]]</box>", "<img></img>",
    "<think>", "<think>So", "</think>", "<tool_call>", '{"name": "click"}', "<|im_end|>", "1e999", "9" * 5_000,
    "-" + "9" * 5_000, "0x10", "1_000", "٣", "Ⅷ", "1/0", "__import__('os').system('touch evaluated')", "eval('1')",
    "exec('x = 1')", "open('evaluated', 'w')", "print(1)", "lambda: 1", "pyautogui", "pyautogui.", "pyautogui.click",
    "pyautogui.click(", "import os; os.remove('x')", "os.system('touch evaluated')", "$(touch evaluated)",
    "; touch evaluated", "%s%n", "{0.__class__}", "{phrase}", "{question}", "<script>alert(1)</script>",
    "'; DROP TABLE x; --", "yes no", "A B C D",
)  # fmt: skip

_BOXES = (
    "none", "[[1, 2, 3]]", "[[1, 2, 3, 4, 5]]", "[[a, b, c, d]]", "[[1, 2, 3, x]]", "[[1 2 3 4]]", "[[1, 2, 3, 4",
    "<box>[[1, 2, 3, 4]]</box><box>[[5, 6, 7", "<box>[[1, 2, 3, 4]]</box><box>[[5, 6, 7]]</box>",
    "<box>1, 2, 3, 4</box>", "[[900, 100, 100, 900]]", "[[100, 900, 900, 100]]", "[[1200, 1300, 1400, 1500]]",
    "[[-500, -500, -100, -100]]", "[[1001, 0, 1500, 1000]]", "[[1e3, 2, 3, 4]]", "[[nan, 1, 2, 3]]",
    "[[inf, 1, 2, 3]]", "[[0x1, 2, 3, 4]]", "[[1_0, 2, 3, 4]]", "[[9999999999, 1, 2, 3]]", "[[1, 2, 3, 4], [5, 6]]",
    "[[[1, 2, 3, 4]]", "[[1, 2, 3, 4]], [", "[[1,, 2, 3, 4]]", "[[1, 2, 3, 4,]]", "[['1', '2', '3', '4']]",
    '[["1", "2", "3", "4"]]', "{'x1': 1, 'y1': 2, 'x2': 3, 'y2': 4}", "[[1;2;3;4]]", "((1, 2, 3, 4))",
    "[[1, 2, 3, 4/0]]", "[[１, ２, ３, ４]]", "[[1, 2, 3, 4]] and [5", "[[--1, 2, 3, 4]]", "<box>[[1, 2, 3, 4]] <box>",
    "[[1, 2, __import__('os').system('touch evaluated'), 4]]", "[[1+1, 2, 3, 4]]", "[[1, 2, 3, 4]",
    "[[" + "1, " * 4_000, "[[1, 2\0, 3, 4]]", "[[1.2.3, 2, 3, 4]]", "[[.5, .5, .9, .9]]", "[[1., 2, 3, 4]]",
    "[[+-1, 2, 3, 4]]", "[[1, 2, 3, None]]", "[[True, 1, 2, 3]]", "[[1j, 2, 3, 4]]", "[[5.5.5]]", "[[,,,]]", "[1]",
)  # fmt: skip
_CALLS = (
    "pyautogui.click", "pyautogui.click(", "pyautogui.click(x=0.1", "pyautogui.click(x=0.1)", "pyautogui.click(y=0.1)",
    "pyautogui.click(x=, y=0.1)", "pyautogui.click(x='0.1', y=0.2)", "pyautogui.click(x=None, y=0.2)",
    "pyautogui.click(x=True, y=0)", "pyautogui.click(x=1e999, y=0.1)", "pyautogui.click(x=1j, y=0.1)",
    "pyautogui.click(x=0.1, x=0.2, y=0.1)", "pyautogui.click(x=0.1, y=0.2, z=0.3)",
    "pyautogui.click(0.1, 0.2, 0.3, 'left', 5)", "pyautogui.click(*[0.1, 0.2])",
    "pyautogui.click(**{'x': 0.1, 'y': 0.2})", "pyautogui.click(x=a, y=b)", "pyautogui.click(x=f'{1}', y=0.1)",
    "pyautogui.click(x=__import__('os').system('touch evaluated'), y=0.1)", "pyautogui.click(x=(lambda: 1)(), y=0.1)",
    "pyautogui.click(x=[0.1], y=0.1)", "pyautogui.click(x={0.1}, y=0.1)", "pyautogui.click(x=0.1; y=0.2)",
    "pyautogui.click(x=0.1 if 1 else 0, y=0.2)", "pyautogui.click(x=[i for i in (1,)][0], y=0.1)",
    "pyautogui.click(x=0.1, y=0.2", "pyautogui.fail()", "pyautogui.screenshot('evaluated')", "pyautogui.run('x')",
    "pyautogui.click.__class__('x')", "pyautogui.click(x=0.1, y=0.2); os.system('touch evaluated')",
    "os.system('touch evaluated')", "mobile.format()", "mobile.swipe()[0](1)",
    "mobile.swipe(from_coord=0.1, to_coord=0.2)", "mobile.swipe(from_coord=[0.1], to_coord=[0.2])",
    "mobile.swipe(from_coord=[0.1, 'a'], to_coord=[0.2, 0.3])", "mobile.open_app(app_name=1)",
    "mobile.wait(seconds='a')", "mobile.wait(seconds=float('inf'))", "mobile.home(1)", "browser.open('http://x')",
    "pyautogui.press(keys=[])", "pyautogui.press(keys=[1])", "pyautogui.press(keys='')", "pyautogui.hotkey('ctrl', 1)",
    "pyautogui.write(message=b'x')", "pyautogui.write(message=['x'])", "pyautogui.write(message='x' 1)",
    "pyautogui.write()", "pyautogui.dragTo()", "pyautogui.write(message='\\u12')",
    "pyautogui.dragTo(from_coord=[0.1, 0.2])", "mobile.swipe()", "mobile.long_press(x=0.5)",
    "pyautogui.scroll(page='down')", "subprocess.run(['touch', 'evaluated'])", "exec('x')",
    "pyautogui.click (x=0.1, y=0.2)", "click(x=0.1, y=0.2)", "gui.click(x=0.1, y=0.2)",
    "pyautogui.click(x=0.1e, y=0.2)", "pyautogui.click(x=0.1, y=0.2,,)",
)  # fmt: skip
_NUMBERS = (
    "none of your business is 3 or 4", "many", "a few", "several", "3 or 4", "3-4", "-3", "3.5", "3,5", "1,000", "1/2",
    "½", "x3", "3x", "three and four", "twenty-one", "0x3", "1e3", "9" * 10, "٣", "three 3", "one two",
    "2 red and 3 blue", "NaN", "?", "more than I can say", "#", "threee", "I see one or two", "10^2", "1_0", "0.0",
    "+ 3 4", "seven of nine", "first", "III", "dozen", "a dozen", "half", "-", "...", "2 x 3", "3; 4", "3\n4",
    "(3, 4)", "[3, 4]", "3%4", "both 1 and 2", "v2.0", "1:2", "between 5 and 9", "no",
)  # fmt: skip
_YES = (
    "maybe", "perhaps", "I do not know", "unsure", "?", "y", "n", "true", "false", "1", "0", "not sure", "yesterday",
    "nothing", "noon", "know", "eyes", "yess", "noo", "It could be yes or no", "either yes or no",
    "between no and yes", "ja", "nein", "oui", "si", "да", "是", "否", "correct", "wrong", "it is", "it is not", "ok",
    "k", ".", "-", "+", "👍", "👎", "[]", "{}", "none", "nay", "yea", "affirmative", "negative", "certainly", "hardly",
    "could be", "red", "probably",
)  # fmt: skip
_CHOICES = (
    "none", "neither", "D", "E", "Z", "D.", "(D)", "Answer: D", "the answer is Z", "A or B", "A and C", "A B", "AB",
    "1", "0", "a red one", "red circle or blue square", "red circle, blue square", "circle", "square", "star",
    "redcircle", "red-circle", "red circles!s", "blue", "green", "white cross", "?", "I do not know", "all",
    "all of them", "any", "both", "Ä", "Α", "А", "first", "the first", "[A, B]", "yes", "no", "option", "Answer:",
    "Answer: ", "option 1", "B or C", "red  circle", "rouge", "C or D", "...", "b c",
)  # fmt: skip
_JSON = (
    "total", "{", "}", "{'total': 1}", "{total: 1}", '{"total": 1', '{"total": 1,}', '{"total": }', '{"total": "1"}',
    '{"total": null}', '{"total": true}', '{"total": [1]}', '{"total": {}}', '{"Total": 1}', "{}", "[]", "1",
    '"total"', "null", "true", "[1]", '[{"total": 1}]', '{"total": NaN}', '{"total": Infinity}',
    '{"total": -Infinity}', '{"total": 1}{"total": 2}', '{"total": 1} x', 'x {"total": 1}', '{"total": 01}',
    '{"total": 1.}', '{"total": .5}', '{"total": +1}', '{"total": 0x1}', '{"total": 1_0}', '"\\x"', '{"total": 1e}',
    '"\\ud8"', "{\"total\": '1'}", '{"total": 1 /* x */}', '{"total": 1}\n// x', "```json\n{}\n```",
    '```json\n{"total": "a"}\n```', '```\n{"total": 1', "\ufeff{}", "[" * 9_000, '{"a":' * 3_000, "9" * 5_000,
    '{"total": "' + "x" * 999, "undefined", "<json>", '{"total": __import__("os").system("touch evaluated")}',
    '{"total": 1; }', '{"total" 1}', '{"total", 1}',
)  # fmt: skip
MALFORMED: dict[str, tuple[str, ...]] = {
    "ground": _BOXES,
    "detect": _BOXES,
    "detect all": _BOXES,
    "point": _BOXES,
    "click": (*_CALLS, "pyautogui.click()", "pyautogui.press('a')", "mobile.home()", "pyautogui.click(0, 0)\n" * 2),
    "agent_step": _CALLS,
    "inspect": _YES,
    "read": _JSON,
    "count": _NUMBERS,
    "choose": _CHOICES,
    "yes_no": _YES,
    "text": ("", " ", "\n", "\t \n"),
    "caption": ("", " ", "\n", "\t \n"),
    "compare": ("", " ", "\n", "\t \n"),
    "views": ("", " ", "\n", "\t \n"),
}  # fmt: skip
GOOD = {
    "ground": "<ref>the red circle</ref><box>[[100, 200, 300, 400], [5, 6, 700, 800]]</box>",
    "detect": "<ref>circle</ref><box>[[100, 200, 300, 400]]</box>",
    "detect all": "Sure.\n```\n<ref>a</ref><box>[[1, 2, 3, 4]]</box>\n<ref>b</ref><box>[[5, 6, 7, 8]]</box>\n```",
    "point": "<ref>the red circle</ref><box>[[100, 200, 300, 400]]</box>",
    "click": "pyautogui.click(x=0.25, y=0.75)",
    "agent_step": "pyautogui.hotkey(keys=['ctrl', 'c'])\nmobile.swipe(from_coord=[0.1, 0.2], to_coord=[0.3, 0.4])",
    "inspect": "A",
    "read": '{"total": 12.5}',
    "text": "EXIT",
    "caption": "A red circle.",
    "count": "There are 3 circles.",
    "choose": "B. blue square",
    "yes_no": "Yes, it is.",
    "compare": "The second is larger.",
    "views": "A chair.",
}


@pytest.fixture(autouse=True)
def _nothing_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Fail if an answer is evaluated, whatever becomes of the result."""
    ran: list[str] = []
    monkeypatch.chdir(tmp_path)
    for owner, name in ((builtins, "eval"), (builtins, "exec"), (os, "system"), (os, "popen"), (subprocess, "Popen")):
        monkeypatch.setattr(owner, name, lambda *_, called=name, **__: ran.append(called))
    yield
    assert ran == []
    assert list(tmp_path.iterdir()) == []


def is_sound(result: Any, width: int = 64, height: int = 48) -> bool:
    """Whether a result has the documented type and lies within the image."""
    match result:
        case Box(x1, y1, x2, y2):
            return 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
        case Point(x, y):
            return 0 <= x < width and 0 <= y < height
        case Action():
            return all(place is None or is_sound(place) for place in (result.point, result.end))
        case Finding():
            return result.passed != bool(result.reason) and all(map(is_sound, result.boxes))
        case tuple():
            return bool(result) and all(map(is_sound, result))
        case str():
            return bool(result.strip()) and result == result.strip()
        case bool() | int():
            return result >= 0
    return isinstance(result, dict) and set(result) >= {"total"}


@pytest.mark.parametrize("task", CALLS)
def test_what_has_not_the_form_is_refused(task: str) -> None:
    for text in MALFORMED[task]:
        with pytest.raises(UnparsableAnswer) as refused:
            print(repr(text[:80]), result_of(task, text))
        assert refused.value.text == text


def test_the_forms_have_fifty_malformed_answers_each() -> None:
    texts = {"text", "caption", "compare", "views"}  # of which any text is the form
    assert {
        task: len(set(MALFORMED[task])) for task in CALLS if len(set(MALFORMED[task])) < 50 and task not in texts
    } == {}
    assert len(set(GARBAGE)) >= 70


def outcome(text: str, call: Callable[[], Any]) -> Any:
    """Whether a call gives a sound result or refuses the text, or else what it gives."""
    try:
        result = call()
    except UnparsableAnswer as refused:
        return refused.text == text
    return is_sound(result) or result


@pytest.mark.parametrize("task", CALLS)
def test_garbage_is_refused_or_taken_for_what_it_is(task: str) -> None:
    for text in GARBAGE:
        assert outcome(text, partial(result_of, task, text)) is True, text[:80]


def damaged(rng: random.Random, text: str) -> str:
    """A good answer with a few characters lost, doubled, exchanged or put in."""
    letters = list(text)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(letters) + 1)
        match rng.randrange(4):
            case 0:
                del letters[place : place + rng.randint(1, 5)]
            case 1:
                letters[place:place] = letters[place : place + 8]
            case 2:
                letters[place:place] = rng.choice("[](){}<>,.'\"\\0123456789eExXjJ-+=_ \n*:;#%\0é")
            case _:
                rng.shuffle(letters) if rng.random() < 0.1 else letters.reverse()
                letters = letters[: max(1, len(letters))]
    return "".join(letters)


@pytest.mark.parametrize("task", CALLS)
def test_damaged_answers_are_refused_or_sound(task: str) -> None:
    assert is_sound(result_of(task, GOOD[task]))
    rng = random.Random(f"damage {task}")
    for _ in range(MUTATIONS):
        text = damaged(rng, GOOD[task])
        assert outcome(text, partial(result_of, task, text)) is True, text


@pytest.mark.parametrize("task", CALLS)
def test_an_answer_that_was_cut_is_refused(task: str) -> None:
    with pytest.raises(UnparsableAnswer, match="not complete"):
        CALLS[task](Tasks(ScriptedBackend(GOOD[task], is_cut=True)), picture())


@pytest.mark.parametrize("task", CALLS)
def test_an_event_loop_gets_the_same(task: str) -> None:
    async def ask(text: str) -> Any:
        async with AsyncTasks(ScriptedBackend(text)) as tasks:
            return await CALLS[task](tasks, picture())

    assert asyncio.run(ask(GOOD[task])) == result_of(task, GOOD[task])
    with pytest.raises(UnparsableAnswer):
        asyncio.run(ask(MALFORMED[task][0]))


def test_the_reasons_and_places_of_failed_checks_are_refused_or_sound() -> None:
    checks = ["Is it round?", "Is it red?"]
    for text in (*GARBAGE, *_BOXES):
        for answers in (["A", "B", text, "[[1, 2, 30, 40]]"], ["A", "B", "It is torn.", text]):
            inspect = partial(Tasks(ScriptedBackend(answers)).inspect, picture(), checks)
            assert outcome(text, inspect) is True, text[:80]


def test_a_model_that_pydantic_checks() -> None:
    for text in _JSON:
        if text in ('{"total": "1"}', '{"total": true}'):  # which pydantic takes for numbers
            continue
        with pytest.raises(UnparsableAnswer):
            print(text, Tasks(ScriptedBackend(text)).read(picture(), Invoice))
    assert Tasks(ScriptedBackend(GOOD["read"])).read(picture(), Invoice) == Invoice(total=12.5)


def test_videos(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("video") / "clip.gif"
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "green", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    for text in MALFORMED["text"]:
        with pytest.raises(UnparsableAnswer):
            Tasks(ScriptedBackend(text)).video(path, "What happens?")
    assert Tasks(ScriptedBackend(" It turns blue. ")).video(path, "What happens?") == "It turns blue."


def test_the_list_of_options_and_the_schema_are_those_of_the_malformed_answers() -> None:
    assert result_of("choose", "B") == OPTIONS[1]
    assert SCHEMA["required"] == ["total"]
