"""Conversations that a model is calibrated on when it is quantised: drawn pictures and texts, or the user's own."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ternvl.errors import ConfigError

Conversation = list[dict[str, Any]]

TEXTS = (
    "Explain in simple words how a lighthouse works and why its light turns.",
    "Write a Python function that merges two sorted lists, and a test for it: def merge(a, b): ...",
    "Traduis en français: The invoice of 14 March lists 3 items for 1,249.50 EUR, payable within 30 days.",
    "请用三句话介绍长江，并说明它流经哪些城市。",
    'Give the following as JSON: name Ada Lovelace, born 1815, with {"notes": ["analytical engine", "algorithm"]}.',
)
QUESTIONS = ("Describe this picture.", "What is written here?", "Where is the largest shape, and which color has it?")
_IMAGES, _TEXTS = (".png", ".jpg", ".jpeg", ".webp", ".bmp"), (".txt", ".md")


def conversations(folder: Path | None = None) -> tuple[list[Conversation], str]:
    """Conversations of the images and texts in `folder`, by default built-in ones, and a digest of their content.

    Raises ConfigError for a folder that has none.
    """
    found = _built_in() if folder is None else _of(folder)
    return found, hashlib.sha256(repr(found).encode()).hexdigest()[:16]


def _of(folder: Path) -> list[Conversation]:
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    images = [_ask(path.read_bytes(), QUESTIONS[0]) for path in paths if path.suffix.lower() in _IMAGES]
    texts = [_say(path.read_text(encoding="utf-8")) for path in paths if path.suffix.lower() in _TEXTS]
    if not images or not texts:
        raise ConfigError(
            f"The calibration folder {folder} must hold at least one image ({', '.join(_IMAGES)}) and one text "
            f"({', '.join(_TEXTS)}); it has {len(images)} images and {len(texts)} texts."
        )
    return images + texts


def _built_in() -> list[Conversation]:
    pictures = zip(_pictures(), QUESTIONS, strict=True)
    return [_ask(picture, question) for picture, question in pictures] + [_say(text) for text in TEXTS]


def _say(text: str) -> Conversation:
    return [{"role": "user", "content": text}]


def _ask(image: bytes, question: str) -> Conversation:
    url = "data:image/png;base64," + base64.b64encode(image).decode()
    parts: Sequence[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": url, "detail": "low"}},
        {"type": "text", "text": question},
    ]
    return [{"role": "user", "content": parts}]


def _pictures() -> Iterator[bytes]:
    """A noisy landscape of gradients, a page of text, and shapes on a plain ground."""
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
