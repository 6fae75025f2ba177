"""The structs that Python mirrors have the sizes that they have in C++."""

from __future__ import annotations

import ctypes

import pytest

from ternvl.kernels import attention, decoder, lora, stage
from ternvl.kernels.loader import Int64, load

MIRRORS: dict[str, type[ctypes.Structure]] = {
    "Adapters": lora.Adapters,
    "Added": lora._Added,
    "AddedToDecoder": decoder._Added,
    "Cache": decoder._Cache,
    "Decoder": decoder._Decoder,
    "Entry": lora._Entry,
    "Job": lora._Job,
    "Layer": decoder._Layer,
    "Problem": attention.Problem,
    "Segment": lora._Segment,
    "Stage": stage._Description,
    "Step": decoder._Step,
}


def size_of(name: str) -> int:
    loaded = load("auto")
    if loaded is None:
        pytest.skip("there is no compiler")
    size: int = loaded.function("ternvl_size_of", ctypes.c_char_p, result=Int64)(name.encode())
    return size


@pytest.mark.parametrize("name", MIRRORS)
def test_a_mirrored_struct_has_the_same_size(name: str) -> None:
    assert ctypes.sizeof(MIRRORS[name]) == size_of(name)


def test_every_struct_is_compared() -> None:
    structs = {each for each in ctypes.Structure.__subclasses__() if each.__module__.startswith("ternvl.kernels")}
    assert structs == set(MIRRORS.values())
    assert size_of("Unknown") == 0
