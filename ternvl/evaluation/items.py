"""The items of an evaluation: a folder with `items.jsonl`, one JSON object a line, and the images that it names.

`docs/evaluation.md` describes the fields.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ternvl.errors import ConfigError, ImageError
from ternvl.limits import ImageLimits
from ternvl.tasks.parsing.words import LETTERS
from ternvl.tasks.pictures import open_picture

FILE_NAME = "items.jsonl"


class BrokenLineError(ValueError):
    """A line that is no item. The message says what is wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkItem:
    """One question with its images and what is right."""

    id: str
    images: tuple[Path, ...]
    question: str
    answers: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    """The texts of the options A, B and so on."""
    box: tuple[float, float, float, float] | None = None
    """The true box in pixels of the first image: x1, y1, x2, y2."""
    size: tuple[int, int] = (1, 1)
    """Width and height of the first image, if there is a box."""
    hint: str = ""
    category: str = ""
    group: str = ""
    """What questions that belong together have in common."""
    figure: str = ""
    """What questions about the same figure have in common."""

    @property
    def first_image(self) -> str:
        """The path of the first image; empty without images."""
        return str(self.images[0]) if self.images else ""

    @property
    def labelled_options(self) -> dict[str, str]:
        """The options by their letters."""
        return dict(zip(LETTERS, self.options, strict=False))


@dataclass(frozen=True, slots=True)
class ItemFile:
    """What a folder holds."""

    path: Path
    items: tuple[BenchmarkItem, ...]
    broken: tuple[tuple[int, str], ...]
    """Line number and fault of each line that is no item."""
    digest: str
    """SHA-256 of the file."""


def read_items(source: Path, limits: ImageLimits, check: Callable[[BenchmarkItem], None]) -> ItemFile:
    """Read a folder, or a file of lines whose images are beside it. Lines that are no items are reported, not raised.

    `check` is called with each item and raises BrokenLineError for one that its metric cannot score. Raises ConfigError
    if there is no such file, or if no line of it is an item.
    """
    path = source / FILE_NAME if source.is_dir() else source
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"The items {path} cannot be read: {error.strerror}.") from error
    items: dict[str, BenchmarkItem] = {}
    broken: list[tuple[int, str]] = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        try:
            if line.strip():
                item = _item(_row(line), number, path.parent, limits)
                if item.id in items:
                    raise BrokenLineError(f"The id {item.id!r} is that of an earlier line.")
                check(item)
                items[item.id] = item
        except BrokenLineError as error:
            broken.append((number, str(error)))
    if not items:
        first = f"; line {broken[0][0]}: {broken[0][1]}" if broken else "."
        raise ConfigError(f"{path} holds no item{first}")
    return ItemFile(path, tuple(items.values()), tuple(broken), hashlib.sha256(data).hexdigest())


def _row(line: bytes) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BrokenLineError(f"It is not JSON: {error}.") from error
    if not isinstance(row, dict):
        raise BrokenLineError("It is not an object.")
    return row


def _item(row: Mapping[str, Any], number: int, folder: Path, limits: ImageLimits) -> BenchmarkItem:
    images = tuple(_image(name, folder) for name in _list(row, "image"))
    size = _size(images[0], limits) if images and row.get("box") is not None else (1, 1)
    question = _string(row, "question", required=True)
    return BenchmarkItem(
        id=_id(row.get("id", number)),
        images=images,
        question=question,
        answers=tuple(map(str, _list(row, "answer"))),
        options=_options(row.get("options")),
        box=_box(row.get("box"), size),
        size=size,
        hint=_string(row, "hint"),
        category=_string(row, "category"),
        group=_string(row, "group"),
        figure=_string(row, "figure"),
    )


def _id(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise BrokenLineError("id must be a text or an integer.")
    return str(value)


def _string(row: Mapping[str, Any], name: str, *, required: bool = False) -> str:
    value = row.get(name, "")
    if not isinstance(value, str) or (required and not value.strip()):
        raise BrokenLineError(f"{name} must be a text{' that is not empty' * required}.")
    return value


def _list(row: Mapping[str, Any], name: str) -> Sequence[Any]:
    """Return a field that is one value or a list of values: texts, and for answers also numbers."""
    value = row.get(name, [])
    values = value if isinstance(value, list) else [value]
    kinds = (str,) if name == "image" else (str, int, float)
    if not all(isinstance(each, kinds) and not isinstance(each, bool) for each in values):
        raise BrokenLineError(f"{name} must be a text or a list of texts.")
    return values


def _image(name: str, folder: Path) -> Path:
    try:
        found = (folder / name).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        raise BrokenLineError(f"The image {name!r} does not exist.") from None
    if not found.is_relative_to(folder.resolve()) or not found.is_file():
        raise BrokenLineError(f"The image {name!r} is not a file below {folder}.")
    return found


def _size(image: Path, limits: ImageLimits) -> tuple[int, int]:
    try:
        return open_picture(image, limits, f"The image {image.name!r}").size
    except ImageError as error:
        raise BrokenLineError(str(error)) from None


def _options(value: Any) -> tuple[str, ...]:
    if isinstance(value, dict) and list(value) == list(LETTERS[: len(value)]):
        value = list(value.values())
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value) or len(value) > len(LETTERS):
        raise BrokenLineError('options must be a list of texts, or an object with "A", "B" and so on.')
    return tuple(value)


def _box(value: Any, size: tuple[int, int]) -> tuple[float, float, float, float] | None:
    if value is None:
        return None
    is_list = isinstance(value, list) and len(value) == 4
    if not is_list or not all(isinstance(each, int | float) and not isinstance(each, bool) for each in value):
        raise BrokenLineError("box must be four numbers: x1, y1, x2, y2 in pixels.")
    x1, y1, x2, y2 = map(float, value)
    if not (0 <= x1 < x2 <= size[0] and 0 <= y1 < y2 <= size[1]):
        raise BrokenLineError(f"box is {value}, but must lie within the {size[0]} x {size[1]} pixels of the image.")
    return x1, y1, x2, y2
