"""Screens, parts and pairs show what they state, and their answers have the forms that `ternvl.tasks` parses."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from ternvl.prompt.tokenizer import Tokenizer
from ternvl.tasks.parsing import boxes, words
from ternvl.tasks.parsing.actions import actions
from ternvl.tasks.prompts import OFFICIAL, PLAIN
from training import nano
from training.codebook import labels_of
from training.export import EMBEDDED
from training.growth import pairs, parts, screens
from training.growth.data import MIXTURE, GrowthData, GrowthEncoder, click_conversation
from training.scenes import COLORS, Box, Scene, draw
from training.tokens import Encoder

SEEDS = range(20)


def nearest(image: np.ndarray, x: float, y: float, color: str) -> float:
    """The distance of a pixel from the nearest shade of a colour."""
    height, width, _ = image.shape
    pixel = image[min(height - 1, int(y * height)), min(width - 1, int(x * width))].astype(int)
    return min(float(np.abs(pixel - shade).max()) for shade in COLORS[color])


def inside(box: Box) -> bool:
    return 0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1


@pytest.mark.parametrize("seed", SEEDS)
def test_screens_show_their_widgets(seed: int) -> None:
    screen = screens.random_screen(random.Random(seed), single_tile=seed % 2 == 0)
    image = np.asarray(screens.draw_screen(screen))
    assert image.shape == (screen.height, screen.width, 3)
    assert 1 <= len(screen.items) == len(screen.lines) == len({line.string for line in screen.lines})
    for item, line in zip(screen.items, screen.lines, strict=True):
        x1, y1, x2, y2 = item.box
        assert inside(item.box)
        assert all(x1 < x < x2 and y1 < y < y2 for x, y in line.centers)
        middle = (y1 + y2) / 2
        left = x1 + (0.06 if item.shape == "checkbox" else 0.03)
        assert min(nearest(image, left, middle + d, item.color) for d in (-0.03, 0.0, 0.03)) < 45
    for i, a in enumerate(screen.items):
        for b in screen.items[:i]:
            assert a.box[0] > b.box[2] or b.box[0] > a.box[2] or a.box[1] > b.box[3] or b.box[1] > a.box[3]


@pytest.mark.parametrize("seed", SEEDS)
def test_clicks_and_boxes_of_widgets_are_where_the_widget_is(seed: int) -> None:
    rng = random.Random(seed)
    screen = screens.random_screen(rng)
    size = screen.width, screen.height
    for index, item in enumerate(screen.items):
        x1, y1, x2, y2 = (edge * length for edge, length in zip(item.box, (*size, *size), strict=True))
        turn = screens.click(rng, screen, index)
        assert turn.question.startswith(OFFICIAL.click.partition("{")[0])
        (action,) = actions(turn.answer, size)
        assert action.name == "pyautogui.click"
        assert action.point is not None
        assert x1 < action.point.x < x2
        assert y1 < action.point.y < y2
        (box,) = boxes.boxes(screens.widget(rng, screen, index).answer, size)
        assert max(abs(a - b) for a, b in zip(box.xyxy, (x1, y1, x2, y2), strict=True)) <= 0.011 * max(size) + 0.5
        for name in screens.names(screen, index):
            others = [other for other in range(len(screen.items)) if name in screens.names(screen, other)]
            assert others == [index]


def test_labels_of_held_out_screens_are_never_trained_on() -> None:
    rng = random.Random(4)
    trained = {line.string for _ in range(60) for line in screens.random_screen(rng).lines}
    held_out = {line.string for _ in range(60) for line in screens.random_screen(rng, held_out=True).lines}
    assert len(held_out) > 50
    assert not trained & held_out


def without(part: parts.Part) -> parts.Part:
    """The same part without its defect."""
    assert part.defect is not None
    if part.defect.shape == "missing hole":
        hole = replace(part.defect, shape="hole", color="black")
        return replace(part, holes=(*part.holes, hole), defect=None)
    return replace(part, defect=None)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_defect_is_all_that_a_part_shows_within_its_box_and_nowhere_else(seed: int) -> None:
    rng = random.Random(seed)
    part = parts.random_part(rng, single_tile=seed % 2 == 0)
    scene = part.scene
    assert all(inside(item.box) for item in scene.items)
    assert len(part.holes) in ((1, 3) if part.defect and part.defect.shape == "missing hole" else (2, 4))
    if part.defect is None:
        return
    shown, good = (np.asarray(parts.draw_part(each)).astype(int) for each in (part, without(part)))
    rows, columns = np.nonzero(np.abs(shown - good).max(-1) > 12)
    seen = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    size = scene.width, scene.height
    truth = [edge * length for edge, length in zip(part.defect.box, (*size, *size), strict=True)]
    slack = 2 + 0.06 * max(truth[2] - truth[0], truth[3] - truth[1])  # a bent line, or a rounded stain, may end earlier
    assert max(abs(a - b) for a, b in zip(seen, truth, strict=True)) <= slack
    located = parts.locate(rng, part)
    assert located is not None
    (box,) = boxes.boxes(located.answer, size)
    assert max(abs(a - b) for a, b in zip(box.xyxy, truth, strict=True)) <= 0.011 * max(size) + 0.5


@pytest.mark.parametrize("seed", SEEDS)
def test_checks_of_parts_are_true(seed: int) -> None:
    rng = random.Random(seed)
    part = parts.random_part(rng)
    shown = f"A part with a {part.defect.shape}." if part.defect else "A good part."
    assert parts.describe(rng, part).answer == shown
    assert PLAIN.inspect == "{check}"  # so the question of a check is the check
    for turn in parts.part_turns(rng, part, 8):
        if turn.task == "check":
            (kind,) = [kind for kind, checks in parts.CHECKS.items() if turn.question in checks]
            failed = words.choice(turn.answer, ("Yes", "No")) == 1
            assert failed == (part.defect is not None and kind in ("", part.defect.shape))


def changed(pair: pairs.Pair) -> list[int]:
    """The items that are elsewhere in the second picture."""
    a, b = pair
    return [i for i, (first, second) in enumerate(zip(a.items, b.items, strict=True)) if first.box != second.box]


@pytest.mark.parametrize("seed", SEEDS)
def test_only_the_named_object_moves_in_the_named_direction(seed: int) -> None:
    pair, item, direction = pairs.moved(random.Random(seed))
    (index,) = changed(pair)
    a, b = (scene.items[index] for scene in pair)
    assert a == item
    steps = {
        "to the left": a.center[0] - b.center[0], "to the right": b.center[0] - a.center[0],
        "up": a.center[1] - b.center[1], "down": b.center[1] - a.center[1],
    }  # fmt: skip
    assert steps[direction] == max(steps.values()) >= 0.2
    first, second = (np.asarray(draw(scene)).astype(int) for scene in pair)
    rows, columns = np.nonzero(np.abs(first - second).max(-1) > 12)
    x1, y1 = (min(a.box[i], b.box[i]) for i in (0, 1))
    x2, y2 = (max(a.box[i], b.box[i]) for i in (2, 3))
    assert x1 - 0.02 <= columns.min() / pair[0].width <= columns.max() / pair[0].width <= x2 + 0.02
    assert y1 - 0.02 <= rows.min() / pair[0].height <= rows.max() / pair[0].height <= y2 + 0.02


@pytest.mark.parametrize("seed", SEEDS)
def test_the_nearer_object_is_larger_and_moves_more(seed: int) -> None:
    (a, b), near, far = pairs.depth(random.Random(seed))

    def seen(name: str, scene: Scene) -> Box:
        (box,) = [item.box for item in scene.items if str(item) == name]
        return box

    shifts = [abs(seen(str(item), b)[0] - seen(str(item), a)[0]) for item in (near, far)]
    widths = [seen(str(item), a)[2] - seen(str(item), a)[0] for item in (near, far)]
    assert shifts[0] > 1.4 * shifts[1]
    assert widths[0] > 1.4 * widths[1]


@pytest.fixture(scope="module")
def encoder() -> GrowthEncoder:
    return GrowthEncoder(Tokenizer.from_folder(EMBEDDED))


def test_coordinates_weigh_more_and_nothing_else_does(encoder: GrowthEncoder) -> None:
    rng = random.Random(1)
    screen = screens.random_screen(rng)
    messages = click_conversation(screens.click(rng, screen, 0))
    plain, weighted = (each.encode(messages, [], [1]) for each in (Encoder(encoder.tokenizer), encoder))
    heavier = [i for i, (a, b) in enumerate(zip(plain.weights, weighted.weights, strict=True)) if a != b]
    assert 2 <= len(heavier) <= 4
    assert {encoder.tokenizer.decode([plain.ids[i]]).strip() for i in heavier} <= {str(n) for n in range(0, 1001, 20)}


@pytest.mark.parametrize("kind", MIXTURE)
def test_every_kind_makes_a_batch_whose_images_fit(encoder: GrowthEncoder, kind: str) -> None:
    data = GrowthData(encoder, "3", {kind: 1.0}, text_share=0.0, several_share=0.3)
    batch = data.batch(6, 2)
    assert len(batch.tiles) == sum(example.num_tiles for example in batch.examples) + 2
    assert len(batch.last_tiles) == len(batch.labels.shape) == (12 if kind == "pair" else 6) + 2
    for example in batch.examples:
        assert len(example.image_positions) == example.num_tiles * nano.CONFIG.tokens_per_tile
        assert any(weight > 0.05 for weight in example.weights)


def test_the_codebook_names_widgets_and_defects() -> None:
    screen = screens.random_screen(random.Random(2))
    assert int((labels_of(screen).shape > 0).sum()) == len(screen.items)
