"""Synthetic scenes: their exact content, and how they are drawn.

A scene has shapes and lines of text on a plain background, with positions in fractions of the canvas, so that its
content is known exactly. Drawing adds variation as in real pictures: noise, gradients, jittered colours, several
fonts, sizes and aspect ratios.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross", "ring", "heart")
COLORS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "red": ((255, 0, 0), (220, 20, 30), (200, 30, 40)),
    "green": ((0, 128, 0), (0, 200, 0), (40, 160, 60), (0, 255, 0)),
    "blue": ((0, 0, 255), (30, 60, 220), (20, 40, 160)),
    "yellow": ((255, 255, 0), (250, 225, 40), (240, 230, 80)),
    "orange": ((255, 165, 0), (255, 140, 0), (245, 130, 30)),
    "purple": ((128, 0, 128), (110, 40, 170), (150, 50, 200)),
    "pink": ((255, 192, 203), (255, 105, 180), (250, 150, 190)),
    "brown": ((139, 69, 19), (120, 72, 35), (150, 85, 45)),
    "black": ((0, 0, 0), (20, 20, 25), (35, 35, 35)),
    "white": ((255, 255, 255), (245, 245, 250), (240, 240, 235)),
    "gray": ((128, 128, 128), (110, 112, 115), (150, 150, 150)),
    "cyan": ((0, 255, 255), (0, 220, 225), (40, 200, 215)),
}
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ23456789"
"""Characters of drawn text. 0 and 1 are left out because some fonts draw them like O and I."""
BACKGROUNDS = (
    (255, 255, 255), (250, 248, 240), (255, 255, 255), (225, 225, 228), (0, 0, 0), (25, 28, 40),
    (215, 235, 240), (245, 228, 225), (250, 245, 210), (222, 238, 218), (60, 62, 66), (205, 215, 240),
)  # fmt: skip
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Item:
    """A shape: its name, colour and bounding box (x1, y1, x2, y2) in fractions of the canvas."""

    shape: str
    color: str
    box: Box

    @property
    def center(self) -> tuple[float, float]:
        x1, y1, x2, y2 = self.box
        return (x1 + x2) / 2, (y1 + y2) / 2

    def __str__(self) -> str:
        return f"{self.color} {self.shape}"


@dataclass(frozen=True, slots=True)
class TextLine:
    """A line of text: the string, its colour, and the centre of each character in fractions of the canvas."""

    string: str
    color: str
    centers: tuple[tuple[float, float], ...]
    font: int
    size: float
    """Font size as a fraction of the canvas height."""


@dataclass(frozen=True, slots=True)
class Scene:
    """The content of a picture. `seed` determines the variation of the drawing."""

    width: int
    height: int
    background: tuple[int, int, int]
    items: tuple[Item, ...]
    lines: tuple[TextLine, ...]
    seed: int

    def in_reading_order(self, grid: int = 4) -> list[Item]:
        """Return the items sorted by the row of a coarse grid, then from left to right."""
        return sorted(self.items, key=lambda item: (int(item.center[1] * grid), item.center[0]))


@lru_cache(maxsize=256)
def font(index: int, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return font number `index`: 0 is Pillow's default font, the others come with matplotlib."""
    if index == 0:
        return ImageFont.load_default(size)
    import matplotlib

    names = ("Sans", "Sans-Bold", "SansMono-Bold", "Serif", "SansMono", "Serif-Bold")
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / f"DejaVu{names[index - 1]}.ttf"), size)


NUM_FONTS = 7


@lru_cache
def visible_colors(background: tuple[int, int, int]) -> list[str]:
    """Return the colours of which every shade contrasts with a background."""
    return [name for name, shades in COLORS.items() if all(math.dist(shade, background) > 85 for shade in shades)]


def random_canvas(rng: random.Random, *, single_tile: bool) -> tuple[int, int]:
    """Draw a width and a height: nearly square and small for a single tile, otherwise up to 480 pixels and 2:1."""
    if single_tile:
        return rng.randint(112, 156), rng.randint(112, 156)
    ratio = math.exp(rng.uniform(-0.7, 0.7))
    side = rng.uniform(180, 480)
    return max(64, round(side * min(1, ratio))), max(64, round(side * min(1, 1 / ratio)))


def random_scene(
    rng: random.Random, num_items: int, *, text: str = "", size: tuple[int, int] | None = None, single_tile: bool = True
) -> Scene:
    """Generate a scene of `num_items` shapes that do not touch, with one line of text if `text` is given."""
    width, height = size or random_canvas(rng, single_tile=single_tile)
    background = rng.choice(BACKGROUNDS)
    colors = visible_colors(background)
    lines: tuple[TextLine, ...] = ()
    region: Box = (0.02, 0.02, 0.98, 0.98)
    if text:
        band = (0.02, 0.98)
        if num_items:
            band, free = rng.choice((((0.02, 0.4), (0.4, 0.98)), ((0.6, 0.98), (0.02, 0.6))))
            region = (0.02, free[0], 0.98, free[1])
        lines = (random_line(rng, text, rng.choice(colors), band, width, height),)
    items: list[Item] = []
    while len(items) < num_items:
        item = _place(rng, items, num_items, region, width / height, colors)
        if item is None:
            items.clear()  # the items left no room: start again
        else:
            items.append(item)
    return Scene(width, height, background, tuple(items), lines, rng.getrandbits(32))


def _place(
    rng: random.Random, others: list[Item], total: int, region: Box, aspect: float, colors: list[str]
) -> Item | None:
    largest = {1: 0.75, 2: 0.44, 3: 0.34, 4: 0.3}.get(total, 0.26)
    for _ in range(40):
        side = rng.uniform(0.17, min(largest, region[3] - region[1] - 0.02, region[2] - region[0] - 0.02))
        w, h = side * min(1, 1 / aspect), side * min(1, aspect)  # square in pixels
        x1, y1 = rng.uniform(region[0], region[2] - w), rng.uniform(region[1], region[3] - h)
        item = Item(rng.choice(SHAPES), rng.choice(colors), (x1, y1, x1 + w, y1 + h))
        if all(are_distinct(item, other) for other in others):
            return item
    return None


def are_distinct(a: Item, b: Item) -> bool:
    """Return whether boxes do not touch, centres are in different cells of the 4x4 grid, and the items differ."""
    gap = 0.02
    separate = (
        a.box[2] + gap < b.box[0] or b.box[2] + gap < a.box[0] or a.box[3] + gap < b.box[1] or b.box[3] + gap < a.box[1]
    )
    cells = [(int(item.center[0] * 4), int(item.center[1] * 4)) for item in (a, b)]
    return separate and cells[0] != cells[1] and (a.shape, a.color) != (b.shape, b.color)


def random_line(
    rng: random.Random, text: str, color: str, band: tuple[float, float], width: int, height: int
) -> TextLine:
    """Place a string in a horizontal band. Centres of characters are at least an eighth of the width apart."""
    index = rng.randrange(NUM_FONTS)
    for _ in range(60):
        size = rng.uniform(0.17, min(0.42, (band[1] - band[0]) * 0.95))
        face = font(index, max(8, round(size * height)))
        widths = [face.getlength(char) / width for char in text]
        spread = rng.uniform(0.0, 0.03)
        steps = [max(0.128, (a + b) / 2 + spread) for a, b in pairwise(widths)]
        total = sum(steps) + (widths[0] + widths[-1]) / 2
        if total < 0.96:
            break
    else:
        return random_line(rng, text[:-1], color, band, width, height)
    x = rng.uniform(0.02, 0.98 - total) + widths[0] / 2
    y = rng.uniform(band[0] + size * 0.45, max(band[0] + size * 0.45, band[1] - size * 0.45))
    centers = [(x, y)]
    for step in steps:
        x += step
        centers.append((x, y))
    return TextLine(text, color, tuple(centers), index, size)


def draw(scene: Scene) -> Image.Image:
    """Draw a scene as an RGB image of its size."""
    rng = random.Random(scene.seed)
    image = Image.new("RGB", (scene.width, scene.height), scene.background)
    if rng.random() < 0.25:
        image = _gradient(image, rng)
    canvas = ImageDraw.Draw(image)
    for item in scene.items:
        _draw_item(canvas, item, shade(item.color, rng), scene)
    for line in scene.lines:
        draw_line(canvas, line, shade(line.color, rng), scene)
    return with_noise(image, rng, scene.seed)


def draw_line(canvas: ImageDraw.ImageDraw, line: TextLine, fill: tuple[int, ...], scene: Scene) -> None:
    """Draw the characters of a line around their centres."""
    face = font(line.font, max(8, round(line.size * scene.height)))
    for char, (x, y) in zip(line.string, line.centers, strict=True):
        canvas.text((x * scene.width, y * scene.height), char, fill=fill, font=face, anchor="mm")


def with_noise(image: Image.Image, rng: random.Random, seed: int) -> Image.Image:
    """Add noise to two pictures in five, of a strength that `rng` draws."""
    if rng.random() >= 0.4:
        return image
    noise = np.random.default_rng(seed).normal(0, rng.uniform(1, 8), (image.height, image.width, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def shade(color: str, rng: random.Random) -> tuple[int, ...]:
    """Return one of a colour's shades, slightly varied."""
    base = rng.choice(COLORS[color])
    return tuple(min(255, max(0, channel + rng.randint(-10, 10))) for channel in base)


def _gradient(image: Image.Image, rng: random.Random) -> Image.Image:
    start = np.asarray(image, dtype=np.float32)
    ramp = np.linspace(-1, 1, image.height if rng.random() < 0.5 else image.width, dtype=np.float32)
    shape = (-1, 1, 1) if len(ramp) == image.height else (1, -1, 1)
    return Image.fromarray(np.clip(start + rng.uniform(4, 14) * ramp.reshape(shape), 0, 255).astype(np.uint8))


def _draw_item(canvas: ImageDraw.ImageDraw, item: Item, fill: tuple[int, ...], scene: Scene) -> None:
    x1, y1 = item.box[0] * scene.width, item.box[1] * scene.height
    x2, y2 = item.box[2] * scene.width, item.box[3] * scene.height
    if item.shape == "circle":
        canvas.ellipse((x1, y1, x2, y2), fill=fill)
    elif item.shape == "square":
        canvas.rectangle((x1, y1, x2, y2), fill=fill)
    elif item.shape == "ring":
        canvas.ellipse((x1, y1, x2, y2), outline=fill, width=max(2, round((x2 - x1) * 0.2)))
    else:
        outline = [(x1 + u * (x2 - x1), y1 + v * (y2 - y1)) for u, v in _OUTLINES[item.shape]]
        canvas.polygon(outline, fill=fill)


def _star() -> list[tuple[float, float]]:
    points = []
    for i in range(10):
        radius = 0.5 if i % 2 == 0 else 0.21
        angle = math.pi * i / 5 - math.pi / 2
        points.append((0.5 + radius * math.cos(angle), 0.5 + radius * math.sin(angle)))
    return points


def _heart() -> list[tuple[float, float]]:
    points = []
    for i in range(40):
        t = 2 * math.pi * i / 40
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((0.5 + x / 34, 0.46 - y / 32))
    return points


_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "triangle": [(0.5, 0.0), (1.0, 1.0), (0.0, 1.0)],
    "diamond": [(0.5, 0.0), (1.0, 0.5), (0.5, 1.0), (0.0, 0.5)],
    "cross": [
        (0.35, 0), (0.65, 0), (0.65, 0.35), (1, 0.35), (1, 0.65), (0.65, 0.65),
        (0.65, 1), (0.35, 1), (0.35, 0.65), (0, 0.65), (0, 0.35), (0.35, 0.35),
    ],
    "star": _star(),
    "heart": _heart(),
}  # fmt: skip
