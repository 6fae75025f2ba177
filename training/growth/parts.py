"""Synthetic parts: plates with holes, of which some have a scratch, a stain or a missing hole, and checks of them."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

from training import tasks
from training.growth.places import grounding
from training.scenes import BACKGROUNDS, COLORS, Box, Item, Scene, random_canvas, shade, visible_colors, with_noise
from training.tasks import Turn

DEFECTS = ("scratch", "stain", "missing hole")
GOOD_SHARE = 0.35
CHECKS: dict[str, tuple[str, ...]] = {
    "scratch": ("Is the part free of scratches?", "Is the surface free of scratches?"),
    "stain": ("Is the part free of stains?", "Is the surface free of stains?"),
    "missing hole": ("Are all holes there?", "Does the part have all holes?"),
    "": ("Is the part good?", "Is the part free of defects?"),
}
"""Checks by the defect that fails them; those of "" fail with any defect."""
_PLACES = {
    "square": ((0.18, 0.18), (0.82, 0.18), (0.18, 0.82), (0.82, 0.82)),
    "round": ((0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73)),
    "two": ((0.2, 0.5), (0.8, 0.5)),
}
"""Where a plate has holes, in fractions of it."""


@dataclass(frozen=True, slots=True)
class Part:
    """A plate on a plain background. The items of its scene are its holes and the defect, if it has one."""

    scene: Scene
    plate: Item
    holes: tuple[Item, ...]
    defect: Item | None


def random_part(rng: random.Random, *, single_tile: bool = True) -> Part:
    """Generate a part; about a third of them are good."""
    width, height = random_canvas(rng, single_tile=single_tile)
    background = rng.choice(BACKGROUNDS)
    w, h = rng.uniform(0.6, 0.94), rng.uniform(0.6, 0.94)
    x, y = rng.uniform(0.02, 0.98 - w), rng.uniform(0.02, 0.98 - h)
    color = rng.choice([name for name in visible_colors(background) if name != "black"])
    plate = Item(rng.choice(("square", "square", "round")), color, (x, y, x + w, y + h))
    pattern = "two" if rng.random() < 0.25 else plate.shape
    radius = rng.uniform(0.06, 0.09)
    holes = [Item("hole", "black", _around(plate.box, u, v, radius)) for u, v in _PLACES[pattern]]
    defect = None
    if rng.random() >= GOOD_SHARE:
        defect = _random_defect(rng, plate, holes)
    shown = tuple(hole for hole in holes if defect is None or hole.box != defect.box)
    items = (*shown, *((defect,) if defect else ()))
    return Part(Scene(width, height, background, items, (), rng.getrandbits(32)), plate, shown, defect)


def _around(plate: Box, u: float, v: float, radius: float) -> Box:
    """Return the box of a hole: `radius` is a fraction of the plate's sides."""
    w, h = plate[2] - plate[0], plate[3] - plate[1]
    x, y = plate[0] + u * w, plate[1] + v * h
    return x - radius * w, y - radius * h, x + radius * w, y + radius * h


def _random_defect(rng: random.Random, plate: Item, holes: list[Item]) -> Item:
    kind = rng.choice(DEFECTS)
    if kind == "missing hole":
        return Item(kind, plate.color, rng.choice(holes).box)
    ink = "black" if kind == "scratch" else rng.choice(("brown", "black", "orange"))
    ink = ink if ink != plate.color else "black"
    low, high = (0.08, 0.4) if kind == "scratch" else (0.12, 0.26)
    while True:
        w, h = rng.uniform(low, high), rng.uniform(low, high)
        if math.hypot(w, h) < 0.2:
            continue
        x1, y1, x2, y2 = plate.box
        x, y = rng.uniform(x1 + 0.05, x2 - 0.05 - w), rng.uniform(y1 + 0.05, y2 - 0.05 - h)
        box = (x, y, x + w, y + h)
        if _is_inside(box, plate) and all(_are_apart(box, hole.box) for hole in holes):
            return Item(kind, ink, box)


def _are_apart(a: Box, b: Box) -> bool:
    return a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1]


def _is_inside(box: Box, plate: Item) -> bool:
    """Return whether a box lies on its plate; only the corners of round plates can lie beside it."""
    x1, y1, x2, y2 = plate.box
    corners = [(box[i], box[j]) for i in (0, 2) for j in (1, 3)]
    places = [((x - x1) / (x2 - x1) * 2 - 1, (y - y1) / (y2 - y1) * 2 - 1) for x, y in corners]
    return plate.shape != "round" or max(math.hypot(*place) for place in places) < 0.95


def draw_part(part: Part) -> Image.Image:
    """Draw a part as an RGB image of its size. The same part without its defect is drawn the same elsewhere."""
    scene = part.scene
    rng = random.Random(scene.seed)
    image = Image.new("RGB", (scene.width, scene.height), scene.background)
    canvas = ImageDraw.Draw(image)
    fill, rim = shade(part.plate.color, rng), tuple(max(0, channel - 60) for channel in scene.background)
    plate = _pixels(part.plate.box, scene)
    if part.plate.shape == "round":
        canvas.ellipse(plate, fill=fill)
    else:
        canvas.rounded_rectangle(plate, rng.uniform(0, 0.1) * scene.width, fill=fill)
    for hole in part.holes:
        canvas.ellipse(_pixels(hole.box, scene), fill=scene.background, outline=rim, width=1)
    if part.defect:
        _draw_defect(canvas, part.defect, scene)
    return with_noise(image, rng, scene.seed)


def _pixels(box: Box, scene: Scene) -> Box:
    """Return the first and the last pixels of a box, as Pillow draws them."""
    return box[0] * scene.width, box[1] * scene.height, box[2] * scene.width - 1, box[3] * scene.height - 1


def _draw_defect(canvas: ImageDraw.ImageDraw, defect: Item, scene: Scene) -> None:
    rng = random.Random(scene.seed + 1)  # of its own, so that the rest of the picture does not depend on it
    x1, y1, x2, y2 = _pixels(defect.box, scene)
    ink = rng.choice(COLORS[defect.color])
    if defect.shape == "scratch":
        width = max(2, round(scene.width / 60))
        left, right, top, bottom = x1 + width / 2, x2 - width / 2, y1 + width / 2, y2 - width / 2
        first, last = rng.choice((((left, top), (right, bottom)), ((left, bottom), (right, top))))
        u, v = 0.5 + rng.uniform(-0.12, 0.12), 0.5 + rng.uniform(-0.12, 0.12)
        bend = (left + u * (right - left), top + v * (bottom - top))
        canvas.line([first, bend, last], fill=ink, width=width, joint="curve")
    elif defect.shape == "stain":
        w, h = x2 - x1, y2 - y1
        canvas.ellipse((x1, y1 + 0.2 * h, x2, y2 - 0.1 * h), fill=ink)
        canvas.ellipse((x1 + rng.uniform(0.05, 0.3) * w, y1, x1 + rng.uniform(0.6, 0.8) * w, y2), fill=ink)


# --- questions --------------------------------------------------------------------------------------------------------


def described(part: Part) -> str:
    """Return the description of a part, which `inspect` takes as the reason of a failed check."""
    return f"A part with a {part.defect.shape}." if part.defect else "A good part."


def describe(rng: random.Random, part: Part) -> Turn:
    """Ask what is in the picture."""
    return Turn("part", rng.choice(tasks.DESCRIBE), described(part))


def check(rng: random.Random, part: Part) -> Turn:
    """Ask a check, which half of the time is about the defect that the part has."""
    kind = part.defect.shape if part.defect and rng.random() < 0.4 else rng.choice(("", *DEFECTS))
    fails = part.defect is not None and kind in ("", part.defect.shape)
    return Turn("check", rng.choice(CHECKS[kind]), "No." if fails else "Yes.")


def locate(rng: random.Random, part: Part) -> Turn | None:
    """Ask where the defect is, half of the time in the words of the description; None for a good part."""
    if part.defect is None:
        return None
    name = part.defect.shape
    phrases = (described(part).rstrip("."), described(part).rstrip("."), name, f"the {name}")
    return grounding("defect", rng.choice(phrases), part.defect.box)


def part_turns(rng: random.Random, part: Part, num_turns: int) -> list[Turn]:
    """Generate different questions about a part."""
    turns: dict[str, Turn] = {}
    for _ in range(30):
        if len(turns) >= num_turns:
            break
        turn = rng.choices((describe, check, locate), (0.2, 0.5, 0.3), k=1)[0](rng, part)
        if turn is not None:
            turns.setdefault(turn.question, turn)
    return list(turns.values())
