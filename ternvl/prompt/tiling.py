"""Cuts an image into the square tiles that the vision tower takes, with the same pixels as the official code.

Source: `dynamic_preprocess` of the InternVL repository.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True, slots=True)
class TileSettings:
    """How an image is cut: into `min_num` to `max_num` tiles, of `side` x `side` pixels, and a thumbnail or none."""

    min_num: int
    max_num: int
    thumbnail: bool
    side: int


@lru_cache(maxsize=64)
def _candidates(min_num: int, max_num: int) -> tuple[tuple[int, int], ...]:
    """Return the grids (cols, rows) of `min_num` to `max_num` tiles, in the order in which they are tried."""
    grids = [(i, j) for i in range(1, max_num + 1) for j in range(1, max_num // i + 1) if i * j >= min_num]
    # The official code sorts a set by area only, so the order of grids of equal area is that of the set, which depends
    # on the order of insertion. It decides ties with a minimum above 1, or with many tiles.
    grids.sort(key=lambda grid: (max(min_num, *grid), grid))
    return tuple(sorted(set(grids), key=math.prod))


def grid(width: int, height: int, *, min_num: int = 1, max_num: int = 12, side: int = 448) -> tuple[int, int]:
    """Return the grid (cols, rows) into which an image of `width` x `height` pixels is cut.

    It is the grid of `min_num` to `max_num` tiles of `side` pixels whose aspect ratio is closest to the image's. On an
    exact tie, a later and larger grid is chosen if the image has more than half of that grid's pixels.
    """
    assert 1 <= min_num <= max_num
    aspect = width / height
    best, best_distance = (1, 1), math.inf
    for cols, rows in _candidates(min_num, max_num):
        distance = abs(aspect - cols / rows)
        fills_half = width * height > 0.5 * side * side * cols * rows
        if distance < best_distance or (distance == best_distance and fills_half):
            best, best_distance = (cols, rows), distance
    return best


def tiles(
    image: Image.Image, *, min_num: int = 1, max_num: int = 12, side: int = 448, thumbnail: bool = True
) -> list[Image.Image]:
    """Return the tiles of `image`, each `side` x `side`, row by row.

    With `thumbnail`, the whole image is appended as one more tile if there are several.
    """
    cols, rows = grid(*image.size, min_num=min_num, max_num=max_num, side=side)
    resized = image.resize((side * cols, side * rows), Image.Resampling.BICUBIC)
    corners = [(side * col, side * row) for row in range(rows) for col in range(cols)]
    cut = [resized.crop((left, top, left + side, top + side)) for left, top in corners]
    if thumbnail and len(cut) > 1:
        cut.append(image.resize((side, side), Image.Resampling.BICUBIC))
    return cut


def digests(cut: Iterable[NDArray[np.uint8]]) -> tuple[bytes, ...]:
    """Return the SHA-256 of the pixels of each tile."""
    return tuple(hashlib.sha256(np.ascontiguousarray(tile).data).digest() for tile in cut)


def scaled_pixels(width: int, height: int, settings: TileSettings) -> int:
    """Return how many pixels an image has between the two passes in which `tiles` scales it.

    The first pass changes the width alone, so a narrow, high image becomes very large.
    """
    cols, _ = grid(width, height, min_num=settings.min_num, max_num=settings.max_num, side=settings.side)
    return settings.side * cols * height
