"""Scenes have the content that they state, and questions about them have true answers."""

from __future__ import annotations

import random
import re

import pytest

from training import tasks
from training.codebook import CHAR_INDEX, COLOR_INDEX, SHAPE_INDEX, labels_of
from training.scenes import COLORS, Item, Scene, draw, random_scene

SEEDS = range(40)


def scene_of(seed: int, num_items: int = 4, text: str = "") -> Scene:
    return random_scene(random.Random(seed), num_items, text=text, single_tile=seed % 2 == 0)


@pytest.mark.parametrize("seed", SEEDS)
def test_items_do_not_touch_and_are_inside_the_canvas(seed: int) -> None:
    scene = scene_of(seed, 1 + seed % 5)
    assert len(scene.items) == 1 + seed % 5
    for i, item in enumerate(scene.items):
        assert 0 <= item.box[0] < item.box[2] <= 1
        assert 0 <= item.box[1] < item.box[3] <= 1
        for other in scene.items[:i]:
            beside = item.box[2] <= other.box[0] or other.box[2] <= item.box[0]
            assert beside or item.box[3] <= other.box[1] or other.box[3] <= item.box[1]
            assert str(item) != str(other)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_drawing_shows_the_colors_where_the_items_are(seed: int) -> None:
    scene = scene_of(seed, 3)
    image = draw(scene)
    assert image.size == (scene.width, scene.height)
    for item in scene.items:
        x, y = item.center
        if item.shape == "ring":  # its centre is empty, so the left edge is checked
            x = item.box[0] + 0.08 * (item.box[2] - item.box[0])
        pixel = image.getpixel((round(x * scene.width), round(y * scene.height)))
        assert isinstance(pixel, tuple)
        nearest = min(max(abs(a - b) for a, b in zip(pixel, shade, strict=True)) for shade in COLORS[item.color])
        assert nearest < 45, (item, pixel)


def test_drawing_is_deterministic() -> None:
    scene = scene_of(3)
    assert draw(scene).tobytes() == draw(scene).tobytes()


def test_labels_name_the_cell_of_each_item_and_character() -> None:
    scene = random_scene(random.Random(5), 1, text="AB7")
    labels = labels_of(scene)
    (item,), (line,) = scene.items, scene.lines
    cell = int(item.center[1] * 4) * 4 + int(item.center[0] * 4)
    assert labels.shape.nonzero().flatten().tolist() == [cell]
    assert (labels.shape[cell], labels.color[cell]) == (SHAPE_INDEX[item.shape], COLOR_INDEX[item.color])
    found = {int(index) for index in labels.chars.flatten() if index}
    assert found == {CHAR_INDEX[char] for char in line.string}


def items_named(scene: Scene, text: str) -> list[Item]:
    """The items that a question names, in its order."""
    found = [(text.find(str(item)), item) for item in scene.items if str(item) in text]
    return [item for _, item in sorted(found, key=lambda pair: pair[0])]


@pytest.mark.parametrize("seed", SEEDS)
def test_answers_are_true(seed: int) -> None:
    scene = scene_of(seed, 2 + seed % 4)
    for turn in tasks.scene_turns(random.Random(seed), scene, 12):
        said = items_named(scene, turn.question)
        match turn.task:
            case "count":
                assert turn.answer == str(len(scene.items))
            case "exists":
                assert turn.answer == ("Yes." if said else "No.")
            case "color_of":
                (item,) = [item for item in scene.items if item.shape in turn.question]
                assert turn.answer == f"{item.color.capitalize()}."
            case "relation":
                a, b = said
                axis = 0 if re.search("left|right", turn.question) else 1
                less = a.center[axis] < b.center[axis]
                assert turn.answer == ("Yes." if less == bool(re.search("left|above", turn.question)) else "No.")
            case "box":
                numbers = [int(number) for number in re.findall(r"\d+", turn.answer)]
                assert all(abs(n / 1000 - edge) <= 0.011 for n, edge in zip(numbers, said[0].box, strict=True))
            case task if task.startswith("describe"):
                assert all(str(item) in turn.answer for item in scene.items)


def test_held_out_words_are_never_trained_on() -> None:
    rng = random.Random(0)
    trained = {tasks.string_to_draw(rng) for _ in range(500)} | {tasks.copy(rng).answer for _ in range(200)}
    for phrase in trained:
        assert not any(tasks.is_held_out(word) for word in phrase.split())
    assert tasks.is_held_out(tasks.random_word(rng, tasks.random_name, held_out=True))


def test_a_description_may_name_its_parts_in_any_order() -> None:
    turn = tasks.Turn("describe_2", "?", "A red circle and an orange ring.")
    assert tasks.is_right(turn, "An orange ring and a red circle.")
    assert not tasks.is_right(turn, "A red circle and an orange star.")
    assert not tasks.is_right(turn, "A red circle.")
