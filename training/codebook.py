"""The codebook: target vectors of image tokens, with which the vision tower and the decoder are trained separately.

Each token stands for a cell of the image's 4x4 grid. Its target is a sum of fixed random vectors: for the position of
the cell, for the shape, the colour and the edges of an item whose centre is in the cell, and for the characters whose
centres are in the cell's four patches. The vision tower learns to produce these targets from pixels. At the same time,
the decoder learns to answer questions from them. Afterwards, both are joined and trained only on the answers.

Shapes: M cells of a tile (16), C hidden size of the decoder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from training.scenes import CHARACTERS, COLORS, SHAPES, Scene

GRID = 4
NUM_CELLS = GRID * GRID
SLOTS = 4
OTHER_KINDS = ("button", "field", "checkbox", "menu", "hole", "scratch", "missing hole", "stain")
"""What else a cell may hold: the widgets of screens, and the holes and defects of parts."""
SHAPE_INDEX = {name: i + 1 for i, name in enumerate((*SHAPES, *OTHER_KINDS))}
COLOR_INDEX = {name: i + 1 for i, name in enumerate(COLORS)}
CHAR_INDEX = {char: i + 1 for i, char in enumerate(CHARACTERS)}
EDGE_FEATURES = 4 * 7


@dataclass(frozen=True, slots=True)
class Labels:
    """The true content of one tile's cells, as indices (0 is "none")."""

    shape: Tensor
    """[M] int64."""
    color: Tensor
    """[M] int64."""
    chars: Tensor
    """[M, 4] int64: one index per patch of the cell, row-major."""
    edges: Tensor
    """[M, 28] float32: zero if no item's centre is in the cell."""

    def to(self, device: torch.device) -> Labels:
        """Return the labels on a device."""
        return Labels(*(each.to(device) for each in (self.shape, self.color, self.chars, self.edges)))


def labels_of(scene: Scene) -> Labels:
    """Return the labels of a scene that fills one tile (or its thumbnail)."""
    shape, color = torch.zeros(NUM_CELLS, dtype=torch.long), torch.zeros(NUM_CELLS, dtype=torch.long)
    chars = torch.zeros(NUM_CELLS, SLOTS, dtype=torch.long)
    edges = torch.zeros(NUM_CELLS, EDGE_FEATURES)
    for item in scene.items:
        x, y = item.center
        cell = int(y * GRID) * GRID + int(x * GRID)
        shape[cell], color[cell] = SHAPE_INDEX[item.shape], COLOR_INDEX[item.color]
        edges[cell] = torch.tensor([feature for edge in item.box for feature in _edge(edge)])
    for line in scene.lines:
        for char, (x, y) in zip(line.string, line.centers, strict=True):
            column, row = min(7, max(0, int(x * 8))), min(7, max(0, int(y * 8)))
            chars[row // 2 * GRID + column // 2, row % 2 * 2 + column % 2] = CHAR_INDEX[char]
    return Labels(shape, color, chars, edges)


def _edge(u: float) -> list[float]:
    waves = [f(2 * math.pi * k * u) for k in (0.5, 1, 2) for f in (math.sin, math.cos)]
    return [2 * u - 1, *waves]


class Codebook:
    """Fixed random vectors, drawn with a seed of their own."""

    def __init__(self, hidden_size: int, seed: int = 7) -> None:
        generator = torch.Generator().manual_seed(seed)

        def vectors(*shape: int, scale: float = 1.0) -> Tensor:
            return torch.randn(*shape, hidden_size, generator=generator) * scale

        self.position = vectors(NUM_CELLS, scale=1.0)
        shapes = vectors(len(SHAPES) + 1)
        self.color = vectors(len(COLORS) + 1)
        in_slot = vectors(SLOTS, len(CHARACTERS) + 1)
        self.edges = vectors(EDGE_FEATURES, scale=0.6)
        in_any_slot = vectors(len(CHARACTERS) + 1)  # the part of a character that is the same in every slot
        self.chars = 0.6 * in_slot + 0.8 * in_any_slot
        self.chars[:, 0] = 0.0  # an empty slot adds nothing
        self.shape = torch.cat([shapes, vectors(len(OTHER_KINDS))])  # drawn last: all other vectors stay as they were

    def to(self, device: torch.device) -> None:
        """Move all vectors to a device."""
        for name, vectors in vars(self).items():
            setattr(self, name, vectors.to(device))

    def tokens(self, labels: Labels) -> Tensor:
        """Return the targets [M, C] of one tile. Batched labels [..., M] give [..., M, C]."""
        slots = torch.arange(SLOTS, device=labels.chars.device)
        chars = self.chars[slots, labels.chars].sum(-2)
        content = self.shape[labels.shape] + self.color[labels.color] + chars + labels.edges @ self.edges
        return 0.5 * (self.position + content)
