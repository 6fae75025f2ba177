"""The mixture of stage 4: everything of before, and boxes, screens, parts and pairs of pictures."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from ternvl.prompt.messages import ImageInput, Message
from ternvl.prompt.tokenizer import Tokenizer
from ternvl.tasks.prompts import OFFICIAL
from training import tasks
from training.codebook import labels_of
from training.growth import pairs, parts, screens
from training.language_stage import random_question_scene
from training.pictures import Picture, PictureData, Sample
from training.scenes import Scene, draw
from training.tasks import Turn
from training.tokens import QUESTION_WEIGHT, Encoder, Example, image_conversation, text_conversation
from training.vision_stage import random_training_scene

SHAPE_TASKS: tasks.ShapeTasks = (
    (tasks.describe, 0.15), (tasks.count, 0.06), (tasks.count_kind, 0.1), (tasks.color_of, 0.04),
    (tasks.shape_of, 0.03), (tasks.exists, 0.06), (tasks.relation, 0.2), (tasks.place, 0.11), (tasks.box, 0.25),
)  # fmt: skip
"""What is still weak is asked more often: boxes, relations, places, counts by kind."""
MIXTURE = {"scene": 0.63, "screen": 0.18, "part": 0.12, "pair": 0.07}
"""Shares of the kinds of pictures in the conversations that have any."""
TEXT_SHARE = 0.45
"""Share of the scenes that hold text."""
CLICK_SHARE = 0.5
COORDINATE_WEIGHT = 2.5
"""Factor of the weight of coordinates, as the rest of an answer with a place is only copied."""
PAIR_TILES = 12 // 2
"""The tiles that each of two images may have, as `ternvl.tasks` asks for."""


class GrowthEncoder(Encoder):
    """An encoder that gives coordinates a higher weight."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        texts = [f"{space}{number}" for number in range(0, 1001, tasks.BOX_STEP) for space in ("", " ")]
        encoded = [tokenizer.encode_text(text) for text in texts if len(text) > 1]
        self.coordinates = {ids[0] for ids in encoded if len(ids) == 1}

    def encode(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], num_tiles: Sequence[int]) -> Example:
        """Encode a conversation, with higher weights of the coordinates in its answers."""
        example = super().encode(messages, tools, num_tiles)
        for i, token in enumerate(example.ids):
            if token in self.coordinates and example.weights[i] > QUESTION_WEIGHT:
                example.weights[i] *= COORDINATE_WEIGHT
        return example


class GrowthData(PictureData):
    """Generates conversations of all kinds."""

    def __init__(self, encoder: Encoder, seed: str, mixture: dict[str, float], **shares: float) -> None:
        super().__init__(encoder, seed, **shares)
        self.mixture = mixture

    def sample(self) -> Sample:
        """Generate one conversation."""
        if self.rng.random() < self.text_share:
            return Sample(*text_conversation(self.rng), kind="text")
        (kind,) = self.rng.choices(tuple(self.mixture), tuple(self.mixture.values()))
        single_tile = self.rng.random() >= self.several_share
        match kind:
            case "screen":
                return screen_sample(self.rng, single_tile=single_tile)
            case "part":
                return part_sample(self.rng, single_tile=single_tile)
            case "pair":
                return pair_sample(self.rng)
        return scene_sample(self.rng, single_tile=single_tile)

    def page(self) -> Picture:
        """Generate a picture that only trains the vision tower."""
        kind = self.rng.random()
        if kind < 0.55:
            return Picture.of(random_training_scene(self.rng))
        return screen_picture(screens.random_screen(self.rng)) if kind < 0.85 else part_picture(self.rng)[1]


def scene_sample(rng: random.Random, *, single_tile: bool) -> Sample:
    """Generate a conversation about a scene, as in the earlier stages."""
    scene = random_question_scene(rng, single_tile=single_tile, text_share=TEXT_SHARE)
    turns = tasks.scene_turns(rng, scene, rng.choice((1, 1, 2, 3, 4, 6)), SHAPE_TASKS)
    return Sample(image_conversation(turns, rng), (), [Picture.of(scene)])


def screen_picture(screen: Scene) -> Picture:
    """Draw a screen."""
    return Picture(screens.draw_screen(screen), labels_of(screen))


def screen_sample(rng: random.Random, *, single_tile: bool) -> Sample:
    """Generate a click on a screen, in the official words, or a conversation about its widgets."""
    screen = screens.random_screen(rng, single_tile=single_tile)
    order = rng.sample(range(len(screen.items)), len(screen.items))
    picture = [screen_picture(screen)]
    if rng.random() < CLICK_SHARE:
        return Sample(click_conversation(screens.click(rng, screen, order[0])), (), picture, "click")
    turns = [screens.widget(rng, screen, index) for index in order[:3]]
    if rng.random() < 0.15:
        turns.insert(0, screens.widgets_counted(rng, screen))
    return Sample(image_conversation(turns, rng), (), picture, "screen")


def click_conversation(turn: Turn) -> list[Message]:
    """Return the messages of a click, as `click` asks for it."""
    asked = Message("user", turn.question, (ImageInput("screen"),))
    return [Message("system", OFFICIAL.click_system), asked, Message("assistant", turn.answer)]


def part_picture(rng: random.Random, *, single_tile: bool = True) -> tuple[parts.Part, Picture]:
    """Generate and draw a part."""
    part = parts.random_part(rng, single_tile=single_tile)
    return part, Picture(parts.draw_part(part), labels_of(part.scene))


def part_sample(rng: random.Random, *, single_tile: bool) -> Sample:
    """Generate a conversation about a part."""
    part, picture = part_picture(rng, single_tile=single_tile)
    turns = parts.part_turns(rng, part, rng.choice((1, 2, 3, 4)))
    return Sample(image_conversation(turns, rng), (), [picture], "part")


def pair_sample(rng: random.Random) -> Sample:
    """Generate a question about two pictures, as `compare` and `views` ask it."""
    pair, turn = pairs.random_pair(rng)
    pictures = [Picture(draw(scene), labels_of(scene), PAIR_TILES) for scene in pair]
    media = (ImageInput("before"), ImageInput("after"))
    asked = Message("user", pairs.several(turn.question, len(pair)), media)
    return Sample([asked, Message("assistant", turn.answer)], (), pictures, "pair")
