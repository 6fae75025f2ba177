"""What tasks ask, in the official words, and what they make of well-formed answers."""

from __future__ import annotations

from typing import Any

import pytest

from ternvl.errors import ConfigError, RequestError
from ternvl.tasks import ACTIONS, PLAIN, Action, Box, Finding, Point, Prompts, TaskRequest, Tasks
from ternvl.tasks.parsing import words
from ternvl.tasks.pictures import Picture
from ternvl.tasks.requests import messages
from tests.tasks.scripted import CALLS, OPTIONS, SCHEMA, ScriptedBackend, picture, result_of
from tests.tasks.test_malformed import GOOD


def asked(task: str, *answers: str) -> list[TaskRequest]:
    backend = ScriptedBackend(answers or GOOD[task])
    CALLS[task](Tasks(backend), picture())
    return backend.requests


def shown(request: TaskRequest, image_token: str | None = "<image>") -> list[Any]:
    """The content of the user's turn, an image as "IMAGE"."""
    content = messages(request, lambda _: {"image": "IMAGE"}, image_token)[-1]["content"]
    return [part.get("text", "IMAGE") for part in content]


GROUND = "Please provide the bounding box coordinate of the region this sentence describes: <ref>{}</ref>"
SHORT = "Answer the question using a single word or phrase."


@pytest.mark.parametrize(
    ("task", "questions"),
    [
        ("ground", [GROUND.format("the red circle")]),
        ("detect", [GROUND.format("circle"), GROUND.format("square")]),
        ("detect all", ["Please detect and label all objects in the following image and mark their positions."]),
        ("point", [GROUND.format("the red circle")]),
        ("click", ["Please complete the following tasks by clicking using `pyautogui.click`:\nopen the menu"]),
        (
            "agent_step",
            [
                "Please generate the next move according to the ui screenshot, instruction and previous actions.\n\n"
                "Instruction:\nsend a mail.\n\nPrevious actions:\npyautogui.click(x=0.1, y=0.2)."
            ],
        ),
        ("count", [f"How many circles are there in the image?\n{SHORT}"]),
        ("yes_no", [f"Is it red? Please answer yes or no. {SHORT}"]),
        (
            "choose",
            [
                "What is it?\nA. red circle\nB. blue square\nC. green star\n"
                "Answer with the option's letter from the given choices directly."
            ],
        ),
        ("caption", ["Provide a one-sentence caption for the provided image."]),
        ("text", ["What is written in the image?"]),
    ],
)
def test_one_image_and_the_official_question(task: str, questions: list[str]) -> None:
    assert [shown(request) for request in asked(task)] == [["IMAGE", question] for question in questions]


def test_several_images_have_labels_in_the_text() -> None:
    for task, question in (("compare", "What are the differences between these images?"), ("views", "What is it?")):
        (request,) = asked(task)
        assert shown(request) == ["IMAGE", "IMAGE", f"Image-1: <image>\nImage-2: <image>\n{question}"]
        assert shown(request, "<IMAGE_TOKEN>")[-1].startswith("Image-1: <IMAGE_TOKEN>\n")
        assert shown(request, None) == ["Image-1: ", "IMAGE", "\n", "Image-2: ", "IMAGE", "\n", question]
        assert request.max_tiles == 6


def test_samples_come_before_the_image_of_an_inspection() -> None:
    first, second = asked("inspect", "A", "B. No", "It is torn.", "[[1, 2, 30, 40]]")[:2]
    text = shown(first)[-1]
    assert text.startswith("Image-1: <image>\nImage-2: <image>\nYou are an industrial inspector who checks products by")
    assert "The first 1 image is the normal sample, which can be used as a template to compare.\n" in text
    assert text.endswith("The last image is the query image.\nQuestion: Is it round?\nA. Yes\nB. No")
    assert shown(second)[-1].endswith("Question: Is it red?\nA. Yes\nB. No")


def test_an_inspection_without_samples_and_places() -> None:
    backend = ScriptedBackend(["B", "It is torn."])
    found = Tasks(backend).inspect(picture(), ["Is it whole?"], locate=False)
    assert found == (Finding("Is it whole?", False, "It is torn."),)
    assert found[0].box is None
    assert "normal sample" not in shown(backend.requests[0])[-1]


def test_an_inspection_with_places() -> None:
    backend = ScriptedBackend(
        ["A", "B", "Yes.", "no", "It is torn.", "None is there.", "[[0, 0, 500, 500]]", "Nowhere."]
    )
    found = Tasks(backend).inspect(picture(), ["Is a?", "Is b?", "Is c?", "Is d?"])
    torn = Box(0, 0, 32, 24, "It is torn.")
    assert found == (
        Finding("Is a?", True),
        Finding("Is b?", False, "It is torn.", (torn,)),
        Finding("Is c?", True),
        Finding("Is d?", False, "None is there.", ()),
    )
    assert found[1].box == torn
    assert shown(backend.requests[-2]) == ["IMAGE", GROUND.format("It is torn")]


def test_systems_of_screens() -> None:
    (click,), backend = asked("click"), ScriptedBackend("mobile.home()")
    assert click.system is not None
    assert "pyautogui.click(x=?, y=?)" in click.system
    Tasks(backend).agent_step(picture(), "go home", platform="mobile")
    system = backend.requests[0].system or ""
    assert system.startswith("You are InternVL, a GUI agent. \n\nYou are given a task and a screenshot of the screen.")
    assert '- {"name": "mobile.home", "description": "Press the home button"}' in system
    named = {line.split('"')[3] for line in system.splitlines() if line.startswith("- ")}
    assert named <= set(ACTIONS)
    (desktop,) = asked("agent_step")
    assert desktop.system == system.partition("\n\nYou have access")[0]


def test_the_last_four_actions_are_shown() -> None:
    backend = ScriptedBackend("mobile.back()")
    done = [Action("mobile.home", "mobile.home()"), *(f"mobile.wait(seconds={number})" for number in range(5))]
    Tasks(backend).agent_step(picture(), "go back", done)
    assert shown(backend.requests[0])[-1].endswith(
        "\n".join(f"mobile.wait(seconds={number})" for number in range(1, 5)) + "."
    )
    Tasks(backend).agent_step(picture(), "go back")
    assert shown(backend.requests[1])[-1].endswith("Previous actions:\nNone.")


@pytest.mark.parametrize("task", CALLS)
def test_tiles_and_tokens(task: str) -> None:
    backend = ScriptedBackend(GOOD[task])
    tasks = Tasks(backend, max_tokens=77)

    class WithTiles:
        def __getattr__(self, name: str) -> Any:
            return lambda *given, **named: getattr(tasks, name)(*given, **named, max_tiles=5)

    CALLS[task](WithTiles(), picture())
    assert {(request.max_tiles, request.max_tokens) for request in backend.requests} == {(5, 77)}


def test_the_schema_is_asked_for() -> None:
    (request,) = asked("read")
    assert request.schema == SCHEMA
    assert shown(request) == ["IMAGE", "Extract the information in the image as JSON."]


def test_prompts_of_ones_own() -> None:
    backend = ScriptedBackend("Yes.")
    Tasks(backend, prompts=Prompts(yes_no="Ist es so: {question}")).yes_no(picture(), "Is {it} red?")
    Tasks(backend, prompts=PLAIN).yes_no(picture(), "Is it red?")
    assert [shown(request)[-1] for request in backend.requests] == ["Ist es so: Is {it} red?", "Is it red?"]


def test_boxes_with_labels_of_the_model() -> None:
    first = "<ref>Gun</ref><box>[[0, 0, 500, 500], [500, 500, 1000, 1000]]</box>"
    text = f"Sure, I will.\n```\n{first}\n<ref>a b</ref>\n<box>[[0,0,1000,500]]</box>\n```"
    found = result_of("detect all", text, size=(10, 10))
    assert found == (Box(0, 0, 5, 5, "Gun"), Box(5, 5, 10, 10, "Gun"), Box(0, 0, 10, 5, "a b"))


def test_boxes_without_the_tags_that_a_server_dropped() -> None:
    text = "red circle[[0, 0, 500, 500]]\n- blue square: [[500, 500, 1000, 1000]]\n[[0, 0, 1000, 500]]"
    found = result_of("detect all", text, size=(10, 10))
    assert [box.label for box in found] == ["red circle", "blue square", ""]


def test_labels_that_were_asked_for() -> None:
    found = result_of(
        "detect", "<ref>other</ref><box>[[0, 0, 500, 500]]</box>", "[[500, 500, 1000, 1000]]", size=(10, 10)
    )
    assert found == (Box(0, 0, 5, 5, "circle"), Box(5, 5, 10, 10, "square"))
    found = result_of("ground", "<ref>black circle</ref><box>[[0, 0, 500, 500]]</box>", size=(10, 10))
    assert found[0].label == "black circle"


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (
            "pyautogui.click(x=0.5, y=0.25, clicks=2, button='right')",
            {"point": Point(50, 50), "amount": 2.0, "text": "right"},
        ),
        ("pyautogui.click()", {}),
        ("pyautogui.doubleClick(0.5, 0.25)", {"point": Point(50, 50)}),
        ("pyautogui.moveTo(x=1, y=0)", {"point": Point(99, 0)}),
        ("pyautogui.dragTo(x=0.5, y=0.25)", {"end": Point(50, 50)}),
        (
            "pyautogui.dragTo(from_coord=[0.1, 0.2], to_coord=(0.3, 0.4))",
            {"point": Point(10, 40), "end": Point(30, 80)},
        ),
        ("pyautogui.scroll(page=-0.5)", {"amount": -0.5}),
        ("pyautogui.scroll(3)", {"amount": 3.0}),
        ("pyautogui.hscroll(page=0.1)", {"amount": 0.1}),
        ("pyautogui.write(message='it\\'s (a) \"test\"\\n')", {"text": 'it\'s (a) "test"\n'}),
        ("pyautogui.write('C:\\\\data \\d', )", {"text": "C:\\data \\d"}),
        ("pyautogui.write(message='pyautogui.fail(1)')", {"text": "pyautogui.fail(1)"}),
        ("pyautogui.press(keys='enter')", {"keys": ("enter",)}),
        ("pyautogui.press(['a', 'b'])", {"keys": ("a", "b")}),
        ("pyautogui.hotkey('ctrl', 'shift', 't')", {"keys": ("ctrl", "shift", "t")}),
        ("pyautogui.hotkey(keys=['ctrl', 'c'])", {"keys": ("ctrl", "c")}),
        ("pyautogui.keyDown('shift')", {"keys": ("shift",)}),
        (
            "mobile.swipe(from_coord=[0.581, 0.898], to_coord=[0.601, 0.518])",
            {"point": Point(58, 179), "end": Point(60, 103)},
        ),
        ("mobile.home()", {}),
        ("mobile.wait(seconds=3)", {"amount": 3.0}),
        ("mobile.long_press(x=0.799, y=0.911)", {"point": Point(79, 182)}),
        ("mobile.open_app(app_name='Maps')", {"text": "Maps"}),
        ("mobile.terminate(status='success')", {"text": "success"}),
        ("browser.select_option(x=0.1, y=0.2, value='two')", {"point": Point(10, 40), "text": "two"}),
        ("answer('42')", {"text": "42"}),
        ("terminate(status='failure')", {"text": "failure"}),
    ],
)
def test_an_action(call: str, expected: dict[str, Any]) -> None:
    wanted = Action(call.partition("(")[0], call, **expected)
    assert result_of("agent_step", call, size=(100, 200)) == (wanted,)
    prose = f"Thought: I use the item(s) on the left.\nAction: {call}\n"
    assert result_of("agent_step", f"{prose}```python\nmobile.back()\n```", size=(100, 200))[0] == wanted


@pytest.mark.parametrize(
    ("text", "number"),
    [("3", 3), ("0", 0), ("3.", 3), ("Three", 3), ("There are 12 circles.", 12), ("none", 0),
     ("There are no circles.", 0), ("Count: 7", 7), ("zero", 0), ("Twenty circles", 20), ("I see one red circle", 1),
     (" 5 \n", 5), ("(4)", 4)],
)  # fmt: skip
def test_a_number(text: str, number: int) -> None:
    assert words.count(text) == number


@pytest.mark.parametrize(
    ("text", "is_yes"),
    [("Yes", True), ("yes.", True), ("No", False), ("NO!", False), ("Yes, there is no doubt.", True), ("**No**", False),
     ("The answer is yes.", True), ("No, I said yes before.", False), ("  'yes'", True)],
)  # fmt: skip
def test_yes_or_no(text: str, is_yes: bool) -> None:
    assert words.yes_or_no(text) is is_yes


@pytest.mark.parametrize(
    ("text", "index"),
    [("A", 0), ("b", 1), ("C.", 2), ("(B)", 1), ("B) blue square", 1), ("Answer: C", 2), ("The answer is A.", 0),
     ("B: x", 1), ("A\nIt is red.", 0), ("Blue square.", 1), ("It is a green star!", 2), ("red circle", 0),
     ("A red circle.", 0)],
)  # fmt: skip
def test_a_choice(text: str, index: int) -> None:
    assert words.choice(text, OPTIONS) == index


def test_an_option_that_is_a_part_of_another() -> None:
    assert words.choice("It is a red circle.", ["circle", "red circle"]) == 1
    assert words.choice("It is a circle.", ["circle", "red circle"]) == 0


@pytest.mark.parametrize("fence", ["{}", "```json\n{}\n```", " ```\n{}\n``` \n", "\n{}\n"])
def test_an_object(fence: str) -> None:
    assert result_of("read", fence.format('{"total": 1.5, "more": [null]}')) == {"total": 1.5, "more": [None]}


@pytest.mark.parametrize(
    "call",
    [
        lambda tasks: tasks.ground(picture(), " "),
        lambda tasks: tasks.ground(picture(), 3),
        lambda tasks: tasks.ground(3, "x"),
        lambda tasks: tasks.detect(picture(), "circle"),
        lambda tasks: tasks.detect(picture(), ["circle", ""]),
        lambda tasks: tasks.inspect(picture(), []),
        lambda tasks: tasks.choose(picture(), "What?", ["one"]),
        lambda tasks: tasks.choose(picture(), "What?", ["one", "one"]),
        lambda tasks: tasks.choose(picture(), "What?", ["one", " "]),
        lambda tasks: tasks.choose(picture(), "What?", list(map(str, range(27)))),
        lambda tasks: tasks.compare([picture()]),
        lambda tasks: tasks.compare("ab"),
        lambda tasks: tasks.views([], "What?"),
        lambda tasks: tasks.agent_step(picture(), "go", platform="tv"),
        lambda tasks: tasks.read(picture(), {"type": "no such type"}),
        lambda tasks: tasks.read(picture(), {"$ref": "http://127.0.0.1:9/schema"}),
        lambda tasks: tasks.read(picture(), "schema.json"),
        lambda tasks: tasks.read(picture(), SCHEMA, ""),
        lambda tasks: tasks.video("clip.gif", "What?", frames=0),
    ],
)
def test_arguments_that_are_refused(call: Any) -> None:
    backend = ScriptedBackend(GOOD["read"])
    with pytest.raises(RequestError):
        call(Tasks(backend))


def test_settings_that_are_refused() -> None:
    for settings in ({"max_tokens": 0}, {"max_tokens": True}):
        with pytest.raises(ConfigError):
            Tasks(ScriptedBackend(""), **settings)
    for settings in ({"api_key": "k"}, {"image_token": None}):
        with pytest.raises(ConfigError, match="for servers"):
            Tasks(ScriptedBackend(""), **settings)
    for url in ("", "127.0.0.1:8000", "ftp://host", "http://"):
        with pytest.raises(ConfigError, match="http"):
            Tasks(url)


def test_a_picture_is_opened_once() -> None:
    opened = Picture(picture())
    backend = ScriptedBackend("Yes.")
    assert Tasks(backend).yes_no(opened, "Is it?")  # type: ignore[arg-type]
    assert backend.requests[0].parts[0] is opened
