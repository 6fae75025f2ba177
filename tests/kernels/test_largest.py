"""The largest of each row against torch's, with equals, infinities and what is no number."""

from collections.abc import Callable

import pytest
import torch

from ternvl.kernels.largest import largest, largest_reference


@pytest.fixture(params=["torch", "portable", "avx2", "avxvnni", "avx512", "avx512vnni"], autouse=True)
def path(request: pytest.FixtureRequest, use_kernels: Callable[[str], None]) -> None:
    use_kernels(request.param)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 31, 33, 1023, 1024, 1025, 5000])
def test_it_is_torchs_and_of_equals_the_first(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    x = torch.randint(-50, 50, (40, size), generator=generator).float()  # full of equals
    x[1] = -torch.inf
    x[2, -1] = torch.inf
    x[3, size // 2] = torch.nan
    x[4, :] = torch.nan
    x[5, 0], x[5, -1] = torch.inf, torch.nan
    values, indices = largest(x)
    wanted = largest_reference(x)
    assert torch.equal(indices, wanted[1])
    assert torch.equal(values.nan_to_num(7e30), wanted[0].nan_to_num(7e30))
    rows = x.tolist()
    for row in [*range(3), *range(6, 40)]:
        assert int(indices[row]) == rows[row].index(max(rows[row]))


def test_rows_may_lie_apart() -> None:
    x = torch.randn(5, 2000)
    for part in (x[:, 100:1300], x[::2], x[:, ::2], x[:1]):
        assert torch.equal(largest(part)[1], part.argmax(dim=-1))
