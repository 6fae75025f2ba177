"""What adapters add, in every library that this CPU runs and in plain torch."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ternvl.kernels.lora import Segments, Table, Target, Weights, add, add_reference

TOLERANCE, ROUNDED = 5e-6, 5e-5  # of the sum of the products' sizes; rows become numbers of 16 bits beside bytes
STORAGE = [torch.float32, torch.bfloat16, torch.int8]
SIZES = [(1, 1, 1), (15, 3, 2), (16, 8, 16), (33, 321, 17), (130, 66, 64)]  # N, K, R


@pytest.fixture(params=["torch", "portable", "avx2", "avx512"], autouse=True)
def isa(request: pytest.FixtureRequest, use_kernels: Callable[[str], None]) -> str:
    use_kernels(request.param)
    return str(request.param)


def weights(n: int, k: int, rank: int, storage: torch.dtype, *, scale: float = 0.5, first: int = 0) -> Weights:
    is_whole = storage == torch.int8
    a, b = (torch.randn(shape).to(torch.float32 if is_whole else storage) for shape in ((rank, k), (n, rank)))
    made = Weights.pack(a, b, scale, first, in_int8=is_whole)
    exact = scale * (b.float() @ a.float())
    if is_whole:
        assert (made.delta() - exact).norm() <= 0.02 * exact.norm()
    else:
        assert torch.allclose(made.delta(), exact, atol=1e-4)
    return made


def table_of(*slots: Weights | None) -> Table:
    table = Table()
    for slot, each in enumerate(slots):
        table.put(slot, each)
    return table


@pytest.mark.parametrize("storage", STORAGE)
def test_it_is_the_product_and_its_rows_are_alone(storage: torch.dtype, isa: str) -> None:
    torch.manual_seed(0)
    for (n, k, rank), m in itertools.product(SIZES, [1, 2, 3, 5, 70, 131]):
        one = weights(n, k, rank, storage)
        table, x, before = table_of(one), torch.randn(m, k), torch.randn(m, n)
        out = before.clone()
        add([Target(table)], Segments([(0, 0, m)], m), x, out)
        exact = before.double() + x.double() @ one.delta().double().T
        size = x.abs() @ one.delta().abs().T * rank + before.abs() + 1
        limit = ROUNDED if storage == torch.int8 else TOLERANCE
        assert ((out - exact).abs() / size).max() < limit, (n, k, rank, m)
        for row in {0, m // 2, m - 1} if isa != "torch" else ():
            alone = before[row : row + 1].clone()
            add([Target(table)], Segments([(0, 0, 1)], 1), x[row : row + 1], alone)
            assert torch.equal(alone[0], out[row]), (n, k, rank, m, row)


@pytest.mark.parametrize("storage", STORAGE)
def test_each_segment_has_its_own_and_the_others_keep_their_bits(storage: torch.dtype) -> None:
    torch.manual_seed(1)
    table = table_of(weights(40, 24, 4, storage), None, weights(40, 24, 16, storage), weights(12, 24, 33, storage))
    x, before = torch.randn(60, 24), torch.randn(60, 40)
    spans = [(0, 0, 3), (2, 3, 5), (1, 6, 9), (9, 9, 10), (3, 17, 20)]  # in units of 3 rows
    out, expected = before.clone(), before.clone()
    add([Target(table)], Segments(spans, 20), x, out)
    add_reference([Target(table)], Segments(spans, 20), x, expected)
    assert torch.allclose(out, expected, atol=1e-2 if storage == torch.int8 else 1e-4)
    assert torch.equal(out[15:51], before[15:51])
    assert torch.equal(out[51:, 12:], before[51:, 12:])
    for start, stop in [(0, 9), (9, 15), (51, 60)]:
        assert not torch.equal(out[start:stop, :12], before[start:stop, :12])


def test_columns_of_a_wider_tensor_and_strided_inputs() -> None:
    torch.manual_seed(2)
    table = table_of(weights(20, 30, 8, torch.float32, first=5))
    x, wide = torch.randn(7, 64), torch.randn(7, 100)
    before = wide.clone()
    inputs, out = x[:, 2:62:2], wide[:, 40:70]
    add([Target(table)], Segments([(0, 2, 6)], 7), inputs, out)
    expected = before[:, 40:70].clone()
    add_reference([Target(table)], Segments([(0, 2, 6)], 7), inputs.contiguous(), expected)
    assert torch.allclose(out, expected, atol=1e-5)
    untouched = torch.ones(7, 100, dtype=torch.bool)
    untouched[2:6, 45:65] = False
    assert torch.equal(wide[untouched], before[untouched])
    assert not torch.equal(wide, before)


def test_threads_change_no_bit(isa: str) -> None:
    if isa == "torch":
        pytest.skip("torch's own products differ in the last bits")
    torch.manual_seed(3)
    threads, results = torch.get_num_threads(), list[Tensor]()
    table = table_of(weights(600, 70, 16, torch.bfloat16), weights(600, 70, 40, torch.bfloat16))
    x = torch.randn(100, 70)
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(torch.zeros(100, 600))
            add([Target(table)], Segments([(0, 0, 1), (1, 1, 99), (0, 99, 100)], 100), x, results[-1])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_a_slot_is_emptied_and_used_again() -> None:
    one, other = weights(8, 8, 2, torch.float32), weights(8, 8, 2, torch.float32)
    table, x, out = table_of(one), torch.randn(1, 8), torch.zeros(1, 8)
    table.put(5, other)
    assert len(table.weights) >= 6
    table.put(0, None)
    add([Target(table)], Segments([(0, 0, 1)], 1), x, out)
    assert not out.any()
    add([Target(table)], Segments([(5, 0, 1)], 1), x, out)
    assert torch.allclose(out, x @ other.delta().T, atol=1e-5)
    table.put(5, None)
    assert table.is_empty


def test_several_modules_with_one_input_are_as_each_alone() -> None:
    torch.manual_seed(4)
    tables = [table_of(weights(n, 50, rank, torch.bfloat16)) for n, rank in ((40, 16), (7, 3), (100, 20))]
    x, wide, segments = torch.randn(9, 50), torch.randn(9, 147), Segments([(0, 1, 8)], 9)
    alone = [part.clone() for part in wide.split((40, 7, 100), 1)]
    add(list(map(Target, tables, (0, 40, 47))), segments, x, wide)
    for table, out in zip(tables, alone, strict=True):
        add([Target(table)], segments, x, out)
    assert torch.allclose(wide, torch.cat(alone, 1), atol=1e-5)
