"""Tasks whose results have places in the image: boxes, points, actions and findings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from ternvl.errors import RequestError, UnparsableAnswer
from ternvl.tasks.parsing import boxes, words
from ternvl.tasks.parsing.actions import actions
from ternvl.tasks.pictures import ImageSource, Picture
from ternvl.tasks.requests import TaskRequest
from ternvl.tasks.results import Action, Box, Finding, Point
from ternvl.tasks.steps import Steps, TaskSettings, ask, ask_all, check_text, check_texts, labelled

Platform = Literal["desktop", "mobile"]
_HISTORY = 4


def ground(
    settings: TaskSettings, image: ImageSource, phrase: str, *, max_tiles: int | None = None
) -> Steps[tuple[Box, ...]]:
    """Return the boxes of what a phrase describes, at least one. The model finds something even if it is not there."""
    picture = settings.open(image)
    text = yield from ask(_grounding(settings, picture, phrase, max_tiles))
    return boxes.boxes(text, picture.size, phrase)


def detect(
    settings: TaskSettings, image: ImageSource, labels: Sequence[str] = (), *, max_tiles: int | None = None
) -> Steps[tuple[Box, ...]]:
    """Return the boxes of objects with these labels, asked for one by one; without labels, of all that the model names.

    The boxes of a label carry it as their `label`.
    """
    picture = settings.open(image)
    asked = check_texts(labels, "labels")
    if not asked:
        text = yield from ask(settings.request(picture, settings.prompts.detect, max_tiles=max_tiles))
        return boxes.boxes(text, picture.size)
    texts = yield from ask_all(_grounding(settings, picture, label, max_tiles) for label in asked)
    found = zip(asked, texts, strict=True)
    return tuple(Box(*box.xyxy, label) for label, text in found for box in boxes.boxes(text, picture.size))


def point(settings: TaskSettings, image: ImageSource, what: str, *, max_tiles: int | None = None) -> Steps[Point]:
    """Return the pixel in the middle of what is described."""
    picture = settings.open(image)
    text = yield from ask(_grounding(settings, picture, what, max_tiles))
    return boxes.point(text, picture.size)


def click(
    settings: TaskSettings, image: ImageSource, instruction: str, *, max_tiles: int | None = None
) -> Steps[Action]:
    """Return the click, or the movement of the pointer, that carries out an instruction on a screenshot."""
    picture, prompts = settings.open(image), settings.prompts
    question = prompts.click.format(instruction=check_text(instruction, "instruction"))
    text = yield from ask(settings.request(picture, question, max_tiles=max_tiles, system=prompts.click_system))
    found = actions(text, picture.size)
    if len(found) != 1 or found[0].point is None or not found[0].name.startswith("pyautogui."):
        raise UnparsableAnswer("is not one click with a place", text)
    return found[0]


def agent_step(
    settings: TaskSettings,
    image: ImageSource,
    goal: str,
    history: Sequence[Action | str] = (),
    *,
    platform: Platform = "desktop",
    max_tiles: int | None = None,
) -> Steps[tuple[Action, ...]]:
    """Return the next actions towards a goal on the screen of a desktop or a mobile device.

    `history` holds the actions so far, of which the model is shown the last four.
    """
    if platform not in get_args(Platform):
        raise RequestError(f"platform is {platform!r}, but must be desktop or mobile.", param="platform")
    picture, prompts = settings.open(image), settings.prompts
    calls = [action.call if isinstance(action, Action) else action for action in history]
    shown = "\n".join(calls[-_HISTORY:]) or "None"
    question = prompts.agent_step.format(goal=check_text(goal, "goal").rstrip("."), history=shown)
    system = prompts.desktop_system if platform == "desktop" else prompts.mobile_system
    text = yield from ask(settings.request(picture, question, max_tiles=max_tiles, system=system))
    return actions(text, picture.size)


def inspect(
    settings: TaskSettings,
    image: ImageSource,
    checklist: Sequence[str],
    references: Sequence[ImageSource] = (),
    *,
    locate: bool = True,
    max_tiles: int | None = None,
) -> Steps[tuple[Finding, ...]]:
    """Return a finding for each check of a product, a question whose answer is yes if the product is good.

    `references` are images of normal samples, which the model compares with. For a check that fails, the model is asked
    for the reason and, with `locate`, where that is in the image; there may be no such place.
    """
    picture, checks = settings.open(image), check_texts(checklist, "checklist", least=1)
    samples = [settings.open(each, f"Reference {number}") for number, each in enumerate(references, start=1)]
    parts, tiles = labelled(settings, [*samples, picture], max_tiles)
    note = settings.prompts.references.format(count=len(samples)) if samples else ""
    texts = yield from ask_all(
        settings.request(*parts, settings.prompts.inspect.format(references=note, check=check), max_tiles=tiles)
        for check in checks
    )
    failed = [check for check, text in zip(checks, texts, strict=True) if not _passes(text)]
    reasons = yield from ask_all(
        settings.request(*parts, settings.prompts.reason.format(check=check), max_tiles=tiles) for check in failed
    )
    located = yield from _locate(settings, picture, reasons if locate else [], max_tiles)
    wrong = dict(zip(failed, zip(reasons, located or [()] * len(reasons), strict=True), strict=True))
    return tuple(_finding(check, *wrong.get(check, ())) for check in checks)


def _finding(check: str, reason: str = "", found: tuple[Box, ...] = ()) -> Finding:
    return Finding(check, not reason, reason.strip(), found)


def _grounding(settings: TaskSettings, picture: Picture, phrase: str, max_tiles: int | None) -> TaskRequest:
    return settings.request(
        picture, settings.prompts.ground.format(phrase=check_text(phrase, "phrase")), max_tiles=max_tiles
    )


def _locate(
    settings: TaskSettings, picture: Picture, reasons: Sequence[str], max_tiles: int | None
) -> Steps[list[tuple[Box, ...]]]:
    phrases = [reason.rstrip(" .") or reason for reason in reasons]
    texts = yield from ask_all(_grounding(settings, picture, phrase, max_tiles) for phrase in phrases)
    answered = zip(texts, reasons, strict=True)  # what is missing has no place, and an answer about it no box
    return [boxes.boxes(text, picture.size, reason) if "[" in text else () for text, reason in answered]


def _passes(answer: str) -> bool:
    return words.choice(answer, ("Yes", "No")) == 0
