"""`grid` and `tiles` against the official rule, which is implemented here a second time from its description."""

from __future__ import annotations

import random
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ternvl.prompt.tiling import grid, tiles

PUBLISHED = [
    ((1000, 747), (4, 3), 13),
    ((1000, 1000), (3, 3), 10),
    ((600, 500), None, 13),
    ((1920, 1200), (3, 2), 7),
    ((889, 500), (2, 1), 3),
]


@cache
def official_candidates(min_num: int, max_num: int) -> list[tuple[int, int]]:
    found = {
        (i, j)
        for n in range(min_num, max_num + 1)
        for i in range(1, n + 1)
        for j in range(1, n + 1)
        if min_num <= i * j <= max_num
    }
    return sorted(found, key=lambda pair: pair[0] * pair[1])


def official_grid(width: int, height: int, min_num: int, max_num: int, side: int) -> tuple[int, int]:
    nearest = float("inf")
    chosen = (1, 1)
    for i, j in official_candidates(min_num, max_num):
        difference = abs(width / height - i / j)
        if difference < nearest:
            nearest = difference
            chosen = (i, j)
        elif difference == nearest and width * height > 0.5 * side * side * i * j:
            chosen = (i, j)
    return chosen


def official_grids(sizes: np.ndarray, max_num: int, side: int) -> np.ndarray:
    """The rule over many sizes [N, 2] at once, as [N, 2]."""
    width, height = sizes[:, 0].astype(np.float64), sizes[:, 1].astype(np.float64)
    nearest = np.full(len(sizes), np.inf)
    chosen = np.ones((len(sizes), 2), dtype=np.int64)
    for i, j in official_candidates(1, max_num):
        difference = np.abs(width / height - i / j)
        tie = (difference == nearest) & (width * height > 0.5 * side * side * i * j)
        chosen[(difference < nearest) | tie] = (i, j)
        nearest = np.minimum(nearest, difference)
    return chosen


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(width * 10_007 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize(("size", "expected", "count"), PUBLISHED)
def test_published_vectors(size: tuple[int, int], expected: tuple[int, int] | None, count: int) -> None:
    cols, rows = grid(*size)
    assert cols * rows + 1 == count
    assert expected is None or (cols, rows) == expected
    assert len(tiles(Image.new("RGB", size))) == count


def test_equals_the_official_rule_for_100_000_sizes() -> None:
    random_sizes = np.random.default_rng(0).integers(1, 5000, (60_000, 2))
    small_sizes = np.random.default_rng(1).integers(1, 60, (20_000, 2))  # many exact ties
    exact = np.random.default_rng(2).integers(1, 13, (20_000, 2)) * np.random.default_rng(3).integers(
        1, 400, (20_000, 1)
    )
    sizes = np.concatenate([random_sizes, small_sizes, exact])
    expected = [tuple(pair) for pair in official_grids(sizes, 12, 448).tolist()]
    assert [grid(width, height) for width, height in sizes.tolist()] == expected


@pytest.mark.parametrize(
    ("min_num", "max_num", "side"), [(1, 6, 448), (2, 2, 448), (2, 6, 448), (4, 40, 112), (1, 64, 448)]
)
def test_equals_the_official_rule_for_other_settings(min_num: int, max_num: int, side: int) -> None:
    draw = random.Random(min_num * 100 + max_num)
    ties = [
        (k * (a * d + b * c), k * 2 * b * d)
        for a, b in [(1, 2), (2, 3), (3, 2)]
        for c, d in [(2, 1), (6, 1), (3, 2)]
        for k in (1, 7, 50)
    ]  # midway between a/b and c/d
    for width, height in ties + [(draw.randint(1, 300), draw.randint(1, 300)) for _ in range(1000)]:
        arguments = {"min_num": min_num, "max_num": max_num, "side": side}
        assert grid(width, height, **arguments) == official_grid(width, height, **arguments), (width, height)


def test_candidates_of_equal_area_are_tried_in_the_official_order() -> None:
    # 5 x 4 is midway between 1:2 and 2:1, the only candidates: the first of the set wins, unless the image is large.
    assert grid(5, 4, min_num=2, max_num=2) == official_candidates(2, 2)[0]
    assert grid(5000, 4000, min_num=2, max_num=2) == official_candidates(2, 2)[1]


@pytest.mark.parametrize(
    ("size", "expected"), [((1, 1), (1, 1)), ((1, 10_000), (1, 12)), ((10_000, 1), (12, 1)), ((2, 1), (2, 1))]
)
def test_extreme_sizes(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert grid(*size) == expected
    made = tiles(Image.new("RGB", size, (9, 8, 7)))
    assert len(made) == expected[0] * expected[1] + (expected != (1, 1))
    assert {tile.size for tile in made} == {(448, 448)}
    assert made[-1].getpixel((5, 5)) == (9, 8, 7)


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.integers(1, 40), st.integers(0, 39))
def test_a_grid_is_one_of_the_candidates_and_none_is_nearer(width: int, height: int, max_num: int, spare: int) -> None:
    min_num = max(1, max_num - spare)
    cols, rows = grid(width, height, min_num=min_num, max_num=max_num)
    assert min_num <= cols * rows <= max_num
    distance = abs(width / height - cols / rows)
    assert distance == min(abs(width / height - i / j) for i, j in official_candidates(min_num, max_num))


@pytest.mark.parametrize("size", [(100, 75), (64, 64), (30, 90), (200, 33), (10, 10)])
def test_pixels_are_those_of_a_bicubic_resize_read_row_by_row(size: tuple[int, int]) -> None:
    image, side = noise(*size), 32
    cols, rows = grid(*size, side=side)
    whole = np.asarray(image.resize((side * cols, side * rows), Image.Resampling.BICUBIC))
    expected = [whole[side * r : side * (r + 1), side * c : side * (c + 1)] for r in range(rows) for c in range(cols)]
    if len(expected) > 1:
        expected.append(np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)))
    np.testing.assert_array_equal(np.stack([np.asarray(tile) for tile in tiles(image, side=side)]), np.stack(expected))


def test_the_thumbnail_can_be_left_out() -> None:
    assert len(tiles(noise(64, 32), side=16, max_num=2)) == 3
    assert len(tiles(noise(64, 32), side=16, max_num=2, thumbnail=False)) == 2
    assert len(tiles(noise(64, 32), side=16, max_num=1)) == 1
