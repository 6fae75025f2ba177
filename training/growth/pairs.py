"""Two views of one scene: an object that moved between them, or a camera that moved and shows what is nearer."""

from __future__ import annotations

import random
from dataclasses import replace

from ternvl.tasks.prompts import OFFICIAL
from training import tasks
from training.scenes import Box, Item, Scene, are_distinct, random_scene
from training.tasks import Turn

Pair = tuple[Scene, Scene]
DIRECTIONS = (("to the left", "to the right"), ("up", "down"))
"""Names of the movements along each axis, towards its start and its end."""


def _size(rng: random.Random) -> tuple[int, int]:
    """Draw a size that is nearly square: several images may have six tiles each, so that fewer sizes make one tile."""
    return rng.randint(112, 134), rng.randint(112, 134)


def moved(rng: random.Random) -> tuple[Pair, Item, str]:
    """Generate a scene, and again after one of its objects moved; return the object and the direction, too."""
    while True:
        scene = random_scene(rng, rng.choice((1, 2, 2, 3)), size=_size(rng))
        index = rng.randrange(len(scene.items))
        item = scene.items[index]
        others = [other for other in scene.items if other is not item]
        for _ in range(20):
            w, h = item.box[2] - item.box[0], item.box[3] - item.box[1]
            x, y = rng.uniform(0.02, 0.98 - w), rng.uniform(0.02, 0.98 - h)
            there = Item(item.shape, item.color, (x, y, x + w, y + h))
            direction = _direction(item, there)
            if direction and all(are_distinct(there, other) for other in others):
                items = tuple(there if other is item else other for other in scene.items)
                return (scene, replace(scene, items=items)), item, direction


def _direction(a: Item, b: Item) -> str:
    """Name the movement from a to b; nothing if it is short or not clearly along one axis."""
    steps = [end - start for start, end in zip(a.center, b.center, strict=True)]
    axis = 0 if abs(steps[0]) > abs(steps[1]) else 1
    if abs(steps[axis]) < max(0.2, 2 * abs(steps[1 - axis])):
        return ""
    return DIRECTIONS[axis][steps[axis] > 0]


def depth(rng: random.Random) -> tuple[Pair, Item, Item]:
    """Generate two views of two objects of one size, from places side by side; return the nearer one first."""
    while True:
        scene = random_scene(rng, 2, size=_size(rng))
        side = rng.uniform(0.3, 0.42)
        distances = rng.sample((1.0, rng.uniform(1.5, 2.2)), 2)
        shift = rng.choice((-1, 1)) * rng.uniform(0.15, 0.3)
        aspect = scene.width / scene.height
        views = []
        for step in (0.0, shift):
            items = [
                Item(item.shape, item.color, _box(item.center, side / distance, aspect, step / distance))
                for item, distance in zip(scene.items, distances, strict=True)
            ]
            views.append(replace(scene, items=tuple(items)))
        if all(_is_sound(view) for view in views):
            a, b = scene.items
            return (views[0], views[1]), *((a, b) if distances[0] < distances[1] else (b, a))


def _box(center: tuple[float, float], side: float, aspect: float, step: float) -> Box:
    w, h = side * min(1, 1 / aspect) / 2, side * min(1, aspect) / 2
    x, y = center[0] + step, center[1]
    return x - w, y - h, x + w, y + h


def _is_sound(view: Scene) -> bool:
    """Return whether both objects are inside the picture and apart."""
    inside = all(0.01 <= edge <= 0.99 for item in view.items for edge in item.box)
    return inside and are_distinct(view.items[0], view.items[1])


# --- questions --------------------------------------------------------------------------------------------------------


def what_moved(rng: random.Random) -> tuple[Pair, Turn]:
    """Ask which object moved, or for the differences, which is what `compare` asks; one pair in eight is equal."""
    pair, item, direction = moved(rng)
    if rng.random() < 0.5:
        question, answer = rng.choice(("Which object moved?", "What moved?")), f"the {item}"
    else:
        question, answer = OFFICIAL.compare, f"the {item} moved {direction}"
    if rng.random() < 0.12:
        pair, answer = (pair[0], pair[0]), "nothing moved"
    return pair, Turn("moved", question, tasks.sentence(answer))


def what_is_nearer(rng: random.Random) -> tuple[Pair, Turn]:
    """Ask which of two objects is nearer."""
    pair, near, far = depth(rng)
    a, b = rng.sample((near, far), 2)
    forms = ("Which object is nearer?", "What is nearer?", f"Which is nearer, the {a} or the {b}?")
    return pair, Turn("nearer", rng.choice(forms), tasks.sentence(f"the {near}"))


def about_both(rng: random.Random) -> tuple[Pair, Turn]:
    """Ask about two equal pictures what one would ask about one of them."""
    scene = random_scene(rng, rng.choice((1, 2, 3)), size=_size(rng))
    return (scene, scene), rng.choice((tasks.describe, tasks.count))(rng, scene)


def random_pair(rng: random.Random) -> tuple[Pair, Turn]:
    """Generate two pictures and a question about them."""
    return rng.choices((what_moved, what_is_nearer, about_both), (0.6, 0.25, 0.15), k=1)[0](rng)


def several(question: str, count: int) -> str:
    """Return a question with the places of its images, as `compare` and `views` send it."""
    return "".join(OFFICIAL.image_label.format(number=i + 1) + "<image>\n" for i in range(count)) + question
