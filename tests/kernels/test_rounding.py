"""Rounding to 8 and 4 bits: what is nearest, and what takes back errors on given inputs."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ternvl.kernels.panels import GROUP
from ternvl.kernels.rounding import compensated_int4, compensated_int8, factor_of, nearest_int4, nearest_int8

Rounded = tuple[Tensor, Tensor]
NEAREST: dict[int, Callable[[Tensor], Rounded]] = {8: nearest_int8, 4: lambda weight: nearest_int4(weight, None)}
COMPENSATED: dict[int, Callable[[Tensor, Tensor], Rounded]] = {8: compensated_int8, 4: compensated_int4}
RANGE, STEPS = {8: (-127, 127), 4: (-8, 7)}, {8: 254, 4: 8}


def inputs(rows: int, k: int) -> Tensor:
    """Inputs whose channels depend on each other, as those of a network do, and differ in size."""
    torch.manual_seed(k)
    mixed = torch.randn(rows, k // 4 + 1) @ torch.randn(k // 4 + 1, k) + 0.3 * torch.randn(rows, k)
    return mixed * torch.rand(k)


def factor(x: Tensor) -> Tensor:
    return factor_of(x.T @ x / len(x))


def restored(whole: Tensor, scales: Tensor) -> Tensor:
    if scales.dim() == 1:
        return whole * scales[:, None]
    return whole * scales.float().repeat_interleave(GROUP, dim=1)[:, : whole.shape[1]]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 31), (16, 32), (33, 33), (48, 100), (64, 256)])
def test_values_are_in_range_and_near(n: int, k: int, bits: int) -> None:
    weight, x = torch.randn(n, k), inputs(200, k)
    original = weight.clone()
    least, most = RANGE[bits]
    for whole, scales in (NEAREST[bits](weight), COMPENSATED[bits](weight, factor(x))):
        assert whole.shape == weight.shape
        assert whole.dtype == torch.int8
        assert whole.is_contiguous()
        assert least <= int(whole.min()) <= int(whole.max()) <= most
        assert scales.shape == ((n,) if bits == 8 else (n, -(-k // GROUP)))
    assert torch.equal(weight, original), "the caller's weights were changed"
    assert (restored(*NEAREST[bits](weight)) - weight).abs().max() <= weight.abs().max() / STEPS[bits] * 1.001


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("k", [33, 100, 256])
def test_compensation_lowers_the_error_of_products_also_on_other_inputs(k: int, bits: int) -> None:
    weight, x = torch.randn(48, k), inputs(600, k)
    seen, other = x[:500], x[500:]

    def error(rounded: Rounded) -> float:
        return float((other @ (restored(*rounded) - weight).T).square().mean())

    assert error(COMPENSATED[bits](weight, factor(seen))) < 0.5 * error(NEAREST[bits](weight))


@pytest.mark.parametrize("bits", [8, 4])
def test_without_correlations_nothing_is_compensated(bits: int) -> None:
    """The oracle of the arithmetic: inputs that do not depend on each other leave each weight's nearest value."""
    weight = torch.randn(7, 96)
    whole, scales = COMPENSATED[bits](weight, factor_of(torch.eye(96)))
    wanted, same = NEAREST[bits](weight)
    assert torch.equal(whole, wanted)
    assert torch.equal(scales, same)


@pytest.mark.parametrize("bits", [8, 4])
def test_fewer_rows_than_inputs_and_channels_that_are_never_used(bits: int) -> None:
    weight, x = torch.randn(16, 96), inputs(7, 96)
    x[:, 40:60] = 0
    assert restored(*COMPENSATED[bits](weight, factor(x))).isfinite().all()
    rounded = COMPENSATED[bits](weight, factor(torch.zeros(3, 96)))
    assert (restored(*rounded) - weight).abs().max() <= weight.abs().max() / STEPS[bits] * 1.001


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_of_zero_stay_so(bits: int) -> None:
    weight = torch.zeros(3, 40)
    for rounded in (NEAREST[bits](weight), COMPENSATED[bits](weight, factor(inputs(50, 40)))):
        assert not restored(*rounded).any()
