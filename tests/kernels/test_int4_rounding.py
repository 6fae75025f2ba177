"""Rounding to 4 bits: what is nearest, and what takes back errors on given inputs."""

import pytest
import torch

from ternvl.kernels.int4_rounding import compensated, nearest
from ternvl.kernels.panels import GROUP


def inputs(rows: int, k: int) -> torch.Tensor:
    """Inputs whose channels depend on each other, as those of a network do, and differ in size."""
    torch.manual_seed(k)
    mixed = torch.randn(rows, k // 4 + 1) @ torch.randn(k // 4 + 1, k) + 0.3 * torch.randn(rows, k)
    return mixed * torch.rand(k)


def restored(whole: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return whole * scales.float().repeat_interleave(GROUP, dim=1)[:, : whole.shape[1]]


@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 31), (16, 32), (33, 33), (48, 100), (64, 256)])
def test_values_are_in_range_and_near(n: int, k: int) -> None:
    weight, x = torch.randn(n, k), inputs(200, k)
    for whole, scales in (nearest(weight, None), compensated(weight, x)):
        assert whole.shape == weight.shape
        assert whole.dtype == torch.int8
        assert whole.is_contiguous()
        assert -8 <= int(whole.min()) <= int(whole.max()) <= 7
        assert scales.shape == (n, -(-k // GROUP))
    whole, scales = nearest(weight, None)
    assert (restored(whole, scales) - weight).abs().max() <= weight.abs().max() / 8


@pytest.mark.parametrize("k", [33, 100, 256])
def test_compensation_lowers_the_error_of_products_also_on_other_inputs(k: int) -> None:
    weight, x = torch.randn(48, k), inputs(600, k)
    seen, other = x[:500], x[500:]
    importance = seen.square().mean(dim=0)

    def error(rounded: tuple[torch.Tensor, torch.Tensor]) -> float:
        return float((other @ (restored(*rounded) - weight).T).square().mean())

    assert error(compensated(weight, seen)) < 0.5 * error(nearest(weight, importance))


def test_fewer_rows_than_inputs_and_channels_that_are_never_used() -> None:
    weight, x = torch.randn(16, 96), inputs(7, 96)
    x[:, 40:60] = 0
    whole, scales = compensated(weight, x)
    assert restored(whole, scales).isfinite().all()
    whole, scales = compensated(weight, torch.zeros(3, 96))
    assert (restored(whole, scales) - weight).abs().max() <= weight.abs().max() / 8


def test_weights_of_zero_stay_so() -> None:
    for whole, scales in (nearest(torch.zeros(3, 40), None), compensated(torch.zeros(3, 40), inputs(50, 40))):
        assert not restored(whole, scales).any()
