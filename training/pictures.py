"""Drawn pictures with conversations about them, in batches, for the stages that train tower and decoder together."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ternvl.prompt.messages import Message
from ternvl.prompt.tiling import tiles
from training import nano, tasks
from training.codebook import Labels, labels_of
from training.language_stage import random_question_scene
from training.scenes import Scene, draw
from training.tokens import Encoder, Example, image_conversation, text_conversation
from training.vision_stage import normalized, random_training_scene, raw_pixels, stack


@dataclass(slots=True)
class Batch:
    """Examples, the tiles of all their images, and the labels of each image's last tile."""

    examples: list[Example]
    tiles: Tensor
    """[N, S, S, 3] uint8: the tiles of the examples in order, then those of pictures that only train the tower."""
    last_tiles: Tensor
    """Indices in `tiles` of the tiles that show a whole scene."""
    labels: Labels
    kinds: list[str]
    """What each example is about."""

    def to(self, device: torch.device) -> Batch:
        """Return the batch with its tensors on a device."""
        return replace(
            self, tiles=self.tiles.to(device), last_tiles=self.last_tiles.to(device), labels=self.labels.to(device)
        )

    def pixels(self) -> Tensor:
        """Return the tiles as the model takes them: [N, 3, S, S]."""
        return normalized(self.tiles)


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawn image, its labels, and the most tiles that it is cut into."""

    image: Image.Image
    labels: Labels
    max_tiles: int = nano.CONFIG.max_dynamic_patch

    @classmethod
    def of(cls, scene: Scene) -> Picture:
        """Draw a scene."""
        return cls(draw(scene), labels_of(scene))

    def tiles(self) -> list[Tensor]:
        """Return the tiles [S, S, 3], of which the last shows the whole image."""
        side = nano.CONFIG.tile_size
        return [raw_pixels(tile, side) for tile in tiles(self.image, max_num=self.max_tiles, side=side)]


@dataclass(frozen=True, slots=True)
class Sample:
    """A conversation to learn from, with the tools and the pictures that it has."""

    messages: list[Message]
    tools: Sequence[dict[str, Any]] = ()
    pictures: Sequence[Picture] = ()
    kind: str = "scene"


class PictureData:
    """Generates conversations about drawn scenes, of one tile or several."""

    def __init__(self, encoder: Encoder, seed: str, *, text_share: float, several_share: float) -> None:
        self.encoder, self.rng = encoder, random.Random(seed)
        self.text_share, self.several_share = text_share, several_share

    def batch(self, size: int, num_pages: int) -> Batch:
        """Generate `size` conversations, and `num_pages` pictures that only train the vision tower."""
        examples: list[Example] = []
        shown: list[tuple[list[Tensor], Labels]] = []
        samples = [self.sample() for _ in range(size)]
        for sample in samples:
            pictures = [(picture.tiles(), picture.labels) for picture in sample.pictures]
            examples.append(self.encoder.encode(sample.messages, sample.tools, [len(rows) for rows, _ in pictures]))
            shown += pictures
        for page in [self.page() for _ in range(num_pages)]:
            shown.append(([raw_pixels(page.image, nano.CONFIG.tile_size)], page.labels))
        last = list(itertools.accumulate(len(rows) for rows, _ in shown))
        tiles_of_all = torch.stack([row for rows, _ in shown for row in rows])
        labels, kinds = stack([labels for _, labels in shown]), [sample.kind for sample in samples]
        return Batch(examples, tiles_of_all, torch.tensor(last) - 1, labels, kinds)

    def sample(self) -> Sample:
        """Generate one conversation."""
        rng = self.rng
        if rng.random() < self.text_share:
            return Sample(*text_conversation(rng), kind="text")
        scene = random_question_scene(rng, single_tile=rng.random() >= self.several_share)
        turns = tasks.scene_turns(rng, scene, rng.choice((1, 1, 2, 3, 4, 6)))
        return Sample(image_conversation(turns, rng), (), [Picture.of(scene)])

    def page(self) -> Picture:
        """Generate a picture that only trains the vision tower."""
        return Picture.of(random_training_scene(self.rng))
