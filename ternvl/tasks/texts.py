"""Tasks whose results are texts, numbers, choices and objects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ternvl.errors import RequestError
from ternvl.tasks.frames import sample_frames
from ternvl.tasks.parsing import words
from ternvl.tasks.parsing.objects import form_of
from ternvl.tasks.pictures import ImageSource, Picture
from ternvl.tasks.steps import Steps, TaskSettings, answer, ask, check_text, in_rows, labelled


def read(
    settings: TaskSettings,
    image: ImageSource,
    schema: Any,
    question: str | None = None,
    *,
    max_tiles: int | None = None,
) -> Steps[Any]:
    """Return what an image says, in the form of a JSON Schema (a JSON value) or a pydantic model (an object of it)."""
    form, parse = form_of(schema)
    asked = settings.prompts.read if question is None else check_text(question, "question")
    text = yield from ask(settings.request(settings.open(image), asked, max_tiles=max_tiles, schema=form))
    return parse(text)


def text(settings: TaskSettings, image: ImageSource, *, max_tiles: int | None = None) -> Steps[str]:
    """Return the text that an image shows."""
    return (yield from answer(settings, image, settings.prompts.text, max_tiles)).strip()


def caption(settings: TaskSettings, image: ImageSource, *, max_tiles: int | None = None) -> Steps[str]:
    """Return one sentence about an image."""
    return (yield from answer(settings, image, settings.prompts.caption, max_tiles)).strip()


def count(settings: TaskSettings, image: ImageSource, what: str, *, max_tiles: int | None = None) -> Steps[int]:
    """Return how many of something (a plural, such as "red cars") an image shows."""
    question = settings.prompts.count.format(what=check_text(what, "what"))
    return words.count((yield from answer(settings, image, question, max_tiles)))


def choose(
    settings: TaskSettings, image: ImageSource, question: str, options: Sequence[str], *, max_tiles: int | None = None
) -> Steps[str]:
    """Return the one of several options that answers a question."""
    listed = words.options_text(options)
    asked = settings.prompts.choose.format(question=check_text(question, "question"), options=listed)
    return options[words.choice((yield from answer(settings, image, asked, max_tiles)), options)]


def yes_no(settings: TaskSettings, image: ImageSource, question: str, *, max_tiles: int | None = None) -> Steps[bool]:
    """Return whether the answer to a question is yes."""
    asked = settings.prompts.yes_no.format(question=check_text(question, "question"))
    return words.yes_or_no((yield from answer(settings, image, asked, max_tiles)))


def compare(
    settings: TaskSettings, images: Sequence[ImageSource], question: str | None = None, *, max_tiles: int | None = None
) -> Steps[str]:
    """Return the answer to a question about several images, by default what the differences between them are.

    The question may call them Image-1, Image-2 and so on. They share twelve tiles, unless `max_tiles` says how many
    each gets.
    """
    asked = settings.prompts.compare if question is None else question
    return (yield from _about_several(settings, images, asked, max_tiles, least=2))


def views(
    settings: TaskSettings, images: Sequence[ImageSource], question: str, *, max_tiles: int | None = None
) -> Steps[str]:
    """Return the answer to a question about one scene or object, given one or several views of it."""
    return (yield from _about_several(settings, images, question, max_tiles, least=1))


def video(
    settings: TaskSettings, path: str | Path, question: str, frames: int = 8, *, max_tiles: int | None = 1
) -> Steps[str]:
    """Return the answer to a question about a video, of which the model sees evenly distributed frames.

    GIF and WebP are always read, other files if PyAV is installed. The question may call the frames Frame-1 and so on.
    """
    asked = check_text(question, "question")
    pictures = [Picture(frame) for frame in sample_frames(path, frames)]
    parts = in_rows(pictures, settings.prompts.frame_label)
    return (yield from ask(settings.request(*parts, asked, max_tiles=max_tiles))).strip()


def _about_several(
    settings: TaskSettings, images: Sequence[ImageSource], question: str, max_tiles: int | None, *, least: int
) -> Steps[str]:
    if isinstance(images, str | bytes | Path) or not isinstance(images, Sequence) or len(images) < least:
        raise RequestError(f"images must be a list of at least {least} image{'s' * (least > 1)}.", param="images")
    pictures = [settings.open(image, f"Image {number}") for number, image in enumerate(images, start=1)]
    parts, tiles = labelled(settings, pictures, max_tiles)
    request = settings.request(*parts, check_text(question, "question"), max_tiles=tiles)
    return (yield from ask(request)).strip()
