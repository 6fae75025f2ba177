"""What tasks ask, in the words of the official evaluation and training data of InternVL3.

Sources: OpenGVLab/InternVL (`internvl_chat/eval`, the documentation's chat data format), VLMEvalKit
(`vlmeval/vlm/internvl`, `vlmeval/dataset/GUI/screenspot.py`) and MMAD (jam-cc/MMAD).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

_SHORT = "Answer the question using a single word or phrase."
_AGENT = (
    "You are InternVL, a GUI agent. \n\nYou are given a task and a screenshot of the screen. You need to perform a "
    "series of pyautogui actions to complete the task."
)


def _function(name: str, description: str, **parameters: tuple[str, str]) -> str:
    """One line of the system message: a function and its required parameters, each with a type and a description."""
    function: dict[str, Any] = {"name": name, "description": description}
    if parameters:
        properties = {key: _property(*parameter) for key, parameter in parameters.items()}
        function["parameters"] = {"type": "object", "properties": properties, "required": list(parameters)}
    return f"- {json.dumps(function)}"


def _property(kind: str, description: str) -> dict[str, Any]:
    typed = {"type": "array", "items": {"type": "number"}} if kind == "coordinates" else {"type": kind}
    return {**typed, "description": description}


_MOBILE = (
    _function(
        "mobile.swipe",
        "swipe on the screen",
        from_coord=("coordinates", "The starting coordinates of the swipe"),
        to_coord=("coordinates", "The ending coordinates of the swipe"),
    ),
    _function("mobile.home", "Press the home button"),
    _function("mobile.back", "Press the back button"),
    _function("mobile.wait", "wait for the change to happen", seconds=("number", "The seconds to wait")),
    _function(
        "mobile.long_press",
        "Long press on the screen",
        x=("number", "The x coordinate of the long press"),
        y=("number", "The y coordinate of the long press"),
    ),
    _function("mobile.open_app", "Open an app on the device", app_name=("string", "The name of the app to open")),
)


@dataclass(frozen=True, slots=True)
class Prompts:
    """The texts of all tasks. `{...}` are the task's arguments; the default values are the official forms."""

    ground: str = (
        "Please provide the bounding box coordinate of the region this sentence describes: <ref>{phrase}</ref>"
    )
    detect: str = "Please detect and label all objects in the following image and mark their positions."
    click_system: str = (
        "You are a GUI agent. You are given a task and a screenshot of the screen. You need to perform pyautogui "
        "click/moveTo action to complete the task. The answer format is `pyautogui.click(x=?, y=?), x and y is "
        "necessary`"
    )
    click: str = "Please complete the following tasks by clicking using `pyautogui.click`:\n{instruction}"
    desktop_system: str = _AGENT
    mobile_system: str = "\n".join((_AGENT + "\n\nYou have access to the following functions:", *_MOBILE))
    agent_step: str = (
        "Please generate the next move according to the ui screenshot, instruction and previous actions.\n\n"
        "Instruction:\n{goal}.\n\nPrevious actions:\n{history}."
    )
    inspect: str = (
        "You are an industrial inspector who checks products by images. You should judge whether there is a defect in "
        "the query image and answer the questions about it.\n"
        "Answer with the option's letter from the given choices directly!\n"
        "{references}Question: {check}\nA. Yes\nB. No"
    )
    references: str = (
        "The first {count} image is the normal sample, which can be used as a template to compare.\n"
        "The last image is the query image.\n"
    )
    """What `inspect` says of normal samples, if there are any."""
    reason: str = "{check}\nThe answer is no. Explain in one sentence what is wrong in the query image."
    read: str = "Extract the information in the image as JSON."
    text: str = "What is written in the image?"
    count: str = f"How many {{what}} are there in the image?\n{_SHORT}"
    choose: str = "{question}\n{options}\nAnswer with the option's letter from the given choices directly."
    yes_no: str = f"{{question}} Please answer yes or no. {_SHORT}"
    compare: str = "What are the differences between these images?"
    caption: str = "Provide a one-sentence caption for the provided image."
    image_label: str = "Image-{number}: "
    """What stands before each of several images."""
    frame_label: str = "Frame-{number}: "


OFFICIAL = Prompts()

PLAIN = Prompts(
    inspect="{check}",
    references="",
    reason="Describe the image.",
    count="How many {what} are there?",
    choose="{question}",
    yes_no="{question}",
)
"""Bare questions, for models that have not learned the official instructions: ternvl-nano, the embedded one."""


def prompts_for(model: str | None) -> Prompts:
    """Return the prompts that suit a model: `PLAIN` for the embedded one, otherwise the official ones."""
    return PLAIN if model == "ternvl-nano" else OFFICIAL
