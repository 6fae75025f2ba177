"""How tasks are written: as generators that yield requests, are sent replies and return a result.

`client.py` runs them, on a thread or on an event loop. The first parameter of each is set by the client. The tasks are
in `places.py` and `texts.py`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ternvl.errors import RequestError
from ternvl.limits import ImageLimits
from ternvl.tasks.pictures import ImageSource, Picture, open_picture
from ternvl.tasks.prompts import Prompts
from ternvl.tasks.requests import Reply, TaskRequest

_T = TypeVar("_T")
Steps = Generator[list[TaskRequest], list[Reply], _T]
"""A task: it yields requests that may be answered together, is sent their replies, and returns its result."""

_TOTAL_TILES = 12
"""The tiles that several images share, as in training; each gets one at least."""


@dataclass(frozen=True, slots=True)
class TaskSettings:
    """What all tasks of a client have in common."""

    prompts: Prompts
    limits: ImageLimits
    max_tokens: int

    def request(self, *parts: str | Picture, max_tiles: int | None, **more: Any) -> TaskRequest:
        """Return a request with these parts."""
        return TaskRequest(parts=parts, max_tiles=max_tiles, max_tokens=self.max_tokens, **more)

    def open(self, image: ImageSource, name: str = "The image") -> Picture:
        """Return an image that a user gave."""
        return open_picture(image, self.limits, name)


def ask(request: TaskRequest) -> Steps[str]:
    """Ask one request; return the text of its reply. Raises UnparsableAnswer if it is cut or empty."""
    (reply,) = yield [request]
    return reply.whole()


def ask_all(requests: Iterable[TaskRequest]) -> Steps[list[str]]:
    """Ask requests together; return the texts of their replies. Raises what `ask` raises."""
    asked = list(requests)
    replies = (yield asked) if asked else []
    return [reply.whole() for reply in replies]


def answer(settings: TaskSettings, image: ImageSource, question: str, max_tiles: int | None) -> Steps[str]:
    """Ask a question about one image; return the answer. Raises what `ask` raises."""
    return (yield from ask(settings.request(settings.open(image), question, max_tiles=max_tiles)))


def labelled(
    settings: TaskSettings, pictures: Sequence[Picture], max_tiles: int | None
) -> tuple[tuple[str | Picture, ...], int | None]:
    """Return images with a label before each, unless it is only one, and the tiles that each of them gets."""
    if len(pictures) == 1:
        return tuple(pictures), max_tiles
    tiles = max(1, _TOTAL_TILES // len(pictures)) if max_tiles is None else max_tiles
    return in_rows(pictures, settings.prompts.image_label), tiles


def in_rows(pictures: Sequence[Picture], label: str) -> tuple[str | Picture, ...]:
    """Return each image on a line of its own, after its label."""
    rows = ((label.format(number=number), picture, "\n") for number, picture in enumerate(pictures, start=1))
    return tuple(part for row in rows for part in row)


def check_text(value: Any, name: str) -> str:
    """Return a text without surrounding white space. Raises RequestError, which names it, if it is empty or none."""
    if not isinstance(value, str) or not value.strip():
        raise RequestError(f"{name} is {value!r}, but must be a text that is not empty.", param=name)
    return value.strip()


def check_texts(values: Any, name: str, *, least: int = 0) -> list[str]:
    """Return a list of texts. Raises RequestError for anything else, and for fewer than `least`."""
    if isinstance(values, str) or not isinstance(values, Sequence) or len(values) < least:
        raise RequestError(f"{name} must be a list of texts{', at least one' * bool(least)}.", param=name)
    return [check_text(value, name) for value in values]
