"""Memory in huge pages."""

import re
import sys
from pathlib import Path

import pytest
import torch

from ternvl.kernels.memory import huge_pages


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what the memory is")
def test_the_system_may_use_huge_pages_for_it() -> None:
    memory = huge_pages(2**22 + 3)
    assert (memory.dtype, len(memory), memory.data_ptr() % 64, memory.any().item()) == (
        torch.uint8,
        2**22 + 3,
        0,
        False,
    )
    flags = None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            holds = int(bounds[1], 16) <= memory.data_ptr() < int(bounds[2], 16)
        elif line.startswith("VmFlags:") and holds:
            flags = line.split()[1:]
    assert flags is not None
    assert "hg" in flags, "huge pages were asked for"
    assert "sh" not in flags, "shared memory has none on most systems"


def test_no_bytes() -> None:
    assert len(huge_pages(0)) == 0
