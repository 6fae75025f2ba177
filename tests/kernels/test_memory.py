"""Memory in huge pages."""

import re
import subprocess
import sys
from mmap import PAGESIZE
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ternvl.kernels import memory


def what_linux_says(of: torch.Tensor) -> dict[str, list[str]]:
    """The fields of /proc/self/smaps of the mapping that a tensor lies in."""
    fields: dict[str, list[str]] = {}
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            if fields:
                break
            holds = int(bounds[1], 16) <= of.data_ptr() < int(bounds[2], 16)
        elif holds:
            name, *values = line.split()
            fields[name.rstrip(":")] = values
    return fields


def test_what_is_allocated() -> None:
    given = memory.allocate(2**22 + 3)
    assert (given.dtype, len(given)) == (torch.uint8, 2**22 + 3)
    assert given.data_ptr() % 64 == 0
    assert not given.any()
    assert len(memory.allocate(0)) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what the memory is")
def test_it_may_become_huge_pages_and_keeps_its_contents() -> None:
    given = memory.allocate(2**25 + 3)
    values = torch.arange(len(given)).to(torch.uint8)
    given.copy_(values)
    flags = what_linux_says(given)["VmFlags"]
    assert "sh" not in flags, "shared memory has no huge pages on most systems"
    address = given.data_ptr()
    memory.make_huge(given)
    assert torch.equal(given, values)
    assert given.data_ptr() == address
    said = what_linux_says(given)
    assert "hg" in said["VmFlags"], "huge pages were asked for"
    enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if enabled.is_file() and "[never]" not in enabled.read_text() and _has_collapse():
        assert int(said["AnonHugePages"][0]) >= 2**14  # KiB: half of it at least


def test_a_program_may_end_at_any_moment_of_it() -> None:
    program = "from ternvl.kernels import memory; memory._SETTLED = 0.02; import time; "
    program += "memory.make_huge_later(memory.allocate(2**28).fill_(1)); time.sleep(0.03)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


def _has_collapse() -> bool:
    major, minor = map(int, re.findall(r"\d+", Path("/proc/sys/kernel/osrelease").read_text())[:2])
    return (major, minor) >= (6, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="pages are given back on Linux")
def test_mapped_pages_are_given_back_and_read_again(tmp_path: Path) -> None:
    values = torch.arange(2**22, dtype=torch.int32)
    save_file({"a": values, "b": values + 1}, tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        mapped = file.get_tensor("a"), file.get_tensor("b")
    assert torch.equal(mapped[0], values)
    assert torch.equal(mapped[1], values + 1)
    before = resident(mapped[0]), resident(mapped[1])
    memory.give_back([mapped[0][5:-5], values])
    after = resident(mapped[0]), resident(mapped[1])
    assert after[0] <= before[0] - (mapped[0].nbytes - 2**17) // 1024
    assert after[1] > mapped[1].nbytes * 0.9 / 1024
    assert torch.equal(mapped[0], torch.arange(2**22, dtype=torch.int32))
    assert torch.equal(values, mapped[0]), "memory of no file stays as it is"


def resident(tensor: torch.Tensor) -> int:
    """KiB of a tensor that are in this process's memory: the pages that `/proc/self/pagemap` has as present."""
    first, last = tensor.data_ptr() // PAGESIZE, (tensor.data_ptr() + tensor.nbytes - 1) // PAGESIZE
    with open("/proc/self/pagemap", "rb", buffering=0) as file:
        file.seek(8 * first)
        entries = memoryview(file.read(8 * (last + 1 - first))).cast("Q")
    return sum(entry >> 63 for entry in entries) * PAGESIZE // 1024
