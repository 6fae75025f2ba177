"""The model's small functions, compared with their definitions."""

import cmath

import pytest
import torch

from ternvl.model.language import RMSNorm, apply_rotary, rotary_table
from ternvl.model.vision import pixel_shuffle


@pytest.mark.parametrize("side", [2, 4, 6])
def test_pixel_shuffle_concatenates_each_square_row_by_row(side: int) -> None:
    channels = 3
    patches = torch.randn(2, side * side, channels)
    folded = pixel_shuffle(patches, 0.5)
    assert folded.shape == (2, side * side // 4, channels * 4)
    square = patches.view(2, side, side, channels)
    for row in range(side // 2):
        for column in range(side // 2):
            r, c = 2 * row, 2 * column
            parts = [square[:, r, c], square[:, r, c + 1], square[:, r + 1, c], square[:, r + 1, c + 1]]
            assert torch.equal(folded[:, row * (side // 2) + column], torch.cat(parts, dim=-1))


def test_pixel_shuffle_by_one_changes_nothing() -> None:
    patches = torch.randn(1, 9, 5)
    assert torch.equal(pixel_shuffle(patches, 1.0), patches)


def test_rotary_turns_pairs_of_halves_as_complex_numbers() -> None:
    size, theta = 8, 10_000.0
    positions = torch.tensor([0, 1, 7, 16_383])
    x = torch.randn(4, 3, size, dtype=torch.float64)
    cos, sin = rotary_table(positions, size, theta)
    assert cos.dtype == sin.dtype == torch.float32
    turned = apply_rotary(x, cos.double(), sin.double())
    for t, position in enumerate(positions.tolist()):
        for head in range(3):
            for i in range(size // 2):
                pair = complex(x[t, head, i], x[t, head, i + size // 2])
                expected = pair * cmath.exp(1j * position / theta ** (2 * i / size))
                got = complex(turned[t, head, i], turned[t, head, i + size // 2])
                assert abs(got - expected) < 2e-3 * abs(pair)  # an angle of 16,383 has ten bits after the point
                if position < 10:
                    assert abs(got - expected) < 1e-6 * abs(pair)


def test_rotary_depends_on_the_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, 64, dtype=torch.float64)

    def score(first: int, second: int) -> float:
        turned = [
            apply_rotary(x, *(table.double() for table in rotary_table(torch.tensor([position]), 64, 1e6)))
            for x, position in ((q, first), (k, second))
        ]
        return float((turned[0] * turned[1]).sum())

    assert score(5, 3) == pytest.approx(score(1005, 1003), abs=1e-3)
    assert score(5, 3) != pytest.approx(score(5, 4), abs=1e-3)


def test_rms_norm_is_computed_in_float32() -> None:
    norm = RMSNorm(4, eps=1e-6).to(torch.float16)
    large = torch.tensor([[300.0, -300.0, 300.0, 300.0]], dtype=torch.float16)  # squares overflow in half precision
    assert norm(large).tolist() == [[1.0, -1.0, 1.0, 1.0]]
