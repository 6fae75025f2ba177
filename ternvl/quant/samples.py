"""The conversations on which quantisation is calibrated: drawn pictures and texts, or files of the user."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ternvl.errors import ConfigError, TernvlError
from ternvl.prompt.build import PromptBuilder
from ternvl.prompt.messages import parse_messages
from ternvl.quant import passages
from ternvl.quant.passages import PASSAGES
from ternvl.types import Prompt

_Messages = list[dict[str, Any]]

TEXTS = (
    "Explain in simple words how a lighthouse works and why its light turns.",
    "Write a Python function that merges two sorted lists, and a test for it: def merge(a, b): ...",
    "Traduis en français: The invoice of 14 March lists 3 items for 1,249.50 EUR, payable within 30 days.",
    "请用三句话介绍长江，并说明它流经哪些城市。",
    'Give the following as JSON: name Ada Lovelace, born 1815, with {"notes": ["analytical engine", "algorithm"]}.',
)
MORE_TEXTS = (
    *("Hello! Who are you?", "What can you do?", "How are you?", "Good morning", "Thank you very much.", "Goodbye"),
    *("Name the european capitals", "What is the capital of France?", "What is the capital of Spain?"),
)
"""Further texts for comparing models, which a small model can answer; on other texts its logits have many near ties."""
QUESTIONS = ("Describe this picture.", "What is written here?", "Where is the largest shape, and which color has it?")
_IMAGES, _TEXTS = (".png", ".jpg", ".jpeg", ".webp", ".bmp"), (".txt", ".md")


class Sample(NamedTuple):
    """A conversation and its name for messages."""

    name: str
    conversation: _Messages


def samples(folder: Path | None = None) -> list[Sample]:
    """Return samples of the images and texts in `folder`, or the built-in samples without one.

    Raises ConfigError if the folder lacks images or texts, or if a file cannot be read.
    """
    return _built_in() if folder is None else _from_folder(folder)


def digest(folder: Path | None = None) -> str:
    """Return the digest of the samples' content. For built-in samples it is that of the source, which is faster.

    Raises ConfigError as `samples`.
    """
    if folder is None:
        content = Path(__file__).read_bytes() + Path(passages.__file__).read_bytes()
    else:
        content = repr([each.conversation for each in _from_folder(folder)]).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def samples_to_compare(folder: Path | None = None) -> list[Sample]:
    """Return the samples for comparing models.

    They are the built-in pictures with each of the questions, all built-in texts, and the files in `folder`. Raises
    ConfigError as `samples`.
    """
    pictures = [
        Sample(f"picture {i}, question {j}", _picture_messages(picture, question))
        for i, picture in enumerate(_pictures(), 1)
        for j, question in enumerate(QUESTIONS, 1)
    ]
    return pictures + _texts(TEXTS + MORE_TEXTS) + ([] if folder is None else _from_folder(folder))


def build(builder: PromptBuilder, sample: Sample) -> Prompt:
    """Build the sample's prompt. Raises ConfigError if the model cannot process it."""
    try:
        return builder.build(parse_messages(sample.conversation))
    except TernvlError as error:
        raise ConfigError(f"The sample {sample.name} cannot be used: {error}") from error


def _from_folder(folder: Path) -> list[Sample]:
    try:
        paths = sorted(folder.iterdir()) if folder.is_dir() else []
        images = [
            Sample(path.name, _picture_messages(path.read_bytes(), QUESTIONS[0]))
            for path in _with_suffixes(_IMAGES, paths)
        ]
        texts = [
            Sample(path.name, _text_messages(path.read_text(encoding="utf-8")))
            for path in _with_suffixes(_TEXTS, paths)
        ]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The calibration folder {folder} cannot be read: {error}.") from error
    if not images or not texts:
        raise ConfigError(
            f"The calibration folder {folder} must hold at least one image ({', '.join(_IMAGES)}) and one text "
            f"({', '.join(_TEXTS)}); it has {len(images)} images and {len(texts)} texts."
        )
    return images + texts


def _with_suffixes(suffixes: Sequence[str], paths: Sequence[Path]) -> list[Path]:
    return [path for path in paths if path.suffix.lower() in suffixes]


def _built_in() -> list[Sample]:
    pictures = zip(_pictures(), QUESTIONS, strict=True)
    asked = [
        Sample(f"picture {i}", _picture_messages(picture, question))
        for i, (picture, question) in enumerate(pictures, 1)
    ]
    return asked + _texts(TEXTS + PASSAGES)


def _texts(texts: Sequence[str]) -> list[Sample]:
    return [Sample(f"text {i}", _text_messages(text)) for i, text in enumerate(texts, 1)]


def _text_messages(text: str) -> _Messages:
    return [{"role": "user", "content": text}]


def _picture_messages(image: bytes, question: str) -> _Messages:
    url = "data:image/png;base64," + base64.b64encode(image).decode()
    parts: Sequence[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": url, "detail": "low"}},
        {"type": "text", "text": question},
    ]
    return [{"role": "user", "content": parts}]


def _pictures() -> Iterator[bytes]:
    """A noisy landscape of gradients, a page of text, and shapes on a plain background."""
    generator = np.random.default_rng(0)
    side = 448
    ramp = np.linspace(0, 1, side)
    waves = np.sin(ramp[:, None] * 9 + 3 * np.sin(ramp[None] * 7))[..., None]
    colors = 128 + 90 * waves * np.array([1, -0.6, 0.3]) + generator.normal(0, 12, (side, side, 3))
    yield _png(Image.fromarray(colors.clip(0, 255).astype(np.uint8)))

    page = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(page)
    for i, text in enumerate(TEXTS[:3] * 3):
        draw.text((12, 12 + 46 * i), text.encode("ascii", "replace").decode()[:60], "black", ImageFont.load_default(13))
    yield _png(page)

    shapes = Image.new("RGB", (side, side), (225, 232, 240))
    draw = ImageDraw.Draw(shapes)
    draw.ellipse((40, 60, 210, 230), (210, 40, 40))
    draw.rectangle((250, 240, 420, 400), (40, 70, 200))
    draw.polygon([(300, 40), (420, 190), (240, 190)], (240, 200, 40))
    yield _png(shapes)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
