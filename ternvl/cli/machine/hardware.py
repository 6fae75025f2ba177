"""The checks of the compiler, processors, memory and disks."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ternvl.cli.machine.diagnosis import FAIL, NOTE, OK, Diagnosis
from ternvl.kernels import build
from ternvl.machine.cgroup import Cgroup
from ternvl.machine.processors import usable, usable_cores
from ternvl.terminal import shown_bytes

_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_LEAST_MEMORY = 500_000_000
"""Python, torch and the embedded model take this much."""
_SMALL_MEMORY = 3_000_000_000
"""What InternVL3-1B takes in int8, with its KV cache."""
_SMALL_DISK = 5_000_000_000
_SLOWER = "without native kernels torch computes, which is several times slower"


def compiler() -> Iterator[Diagnosis]:
    """Check for a C++ compiler."""
    try:
        command = build.find_compiler()
        asked = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=30, check=True)
    except build.BuildError as error:
        yield Diagnosis("Compiler", NOTE, f"{error}; {_SLOWER}", "Install g++ or clang++.")
    except (OSError, subprocess.SubprocessError) as error:
        shown = shlex.join(command)
        yield Diagnosis("Compiler", NOTE, f"{shown} does not run: {error}; {_SLOWER}", "Let CXX name a C++ compiler.")
    else:
        yield Diagnosis("Compiler", OK, f"{shlex.join(command)}, {asked.stdout.partition(chr(10))[0]}")


def kernels() -> Iterator[Diagnosis]:
    """Check the instruction set and the kernels for it, which are loaded and computed with if they are built."""
    from ternvl.errors import ConfigError
    from ternvl.kernels.loader import library

    try:
        isa = os.environ.get(build.VARIABLE, "auto")
        isa = build.best_isa() if isa == "auto" else isa
        if isa in build.FLAGS and build.find(isa) is None:
            advice = "The next start builds them, or `python -m ternvl.kernels.build` does it now."
            yield Diagnosis("Kernels", NOTE, f"not built for {isa} yet", advice)
            return
        loaded = library()
    except build.BuildError as error:
        yield Diagnosis("Kernels", NOTE, f"none: {error}; {_SLOWER}", "Install g++ or clang++.")
        return
    except ConfigError as error:
        yield Diagnosis("Kernels", FAIL, str(error), f"Unset {build.VARIABLE}, or set it to a value that is named.")
        return
    if loaded is None:
        advice = f"Unset {build.VARIABLE}." if isa == "torch" else "Run `python -m ternvl.kernels.build`."
        yield Diagnosis("Kernels", NOTE, f"none are used: {_SLOWER}", advice)
        return
    yield Diagnosis("Kernels", OK, f"built for {loaded.isa}, loaded and checked")


def processors() -> Iterator[Diagnosis]:
    """Check that there are not more threads than cores, which `OMP_NUM_THREADS` may ask for."""

    from ternvl.machine.num_threads import default_threads

    number, cores = len(usable()), usable_cores()
    quota, threads = Cgroup().processors(), default_threads()
    on_cores = f" on {cores} core{'s' if cores != 1 else ''}" if cores < number else ""
    found = f"{number} of {os.cpu_count()} usable{on_cores}, {threads} thread{'s' if threads != 1 else ''}"
    if quota is not None:
        found += f", a cgroup's quota of {quota:g}"
    allowed = cores if quota is None else min(cores, max(1, round(quota)))
    if threads > allowed:
        yield Diagnosis("Processors", NOTE, found, f"Set OMP_NUM_THREADS={allowed}: more threads wait for each other.")
    elif threads < allowed and "OMP_NUM_THREADS" in os.environ:
        yield Diagnosis("Processors", NOTE, found, "OMP_NUM_THREADS leaves cores idle; unset it to use them.")
    else:
        yield Diagnosis("Processors", OK, found)


def accelerator() -> Iterator[Diagnosis]:
    """Check for a GPU."""
    import torch

    if not torch.cuda.is_available():
        built = "" if torch.version.cuda else "; this torch is built for CPUs alone"
        yield Diagnosis("GPU", OK, f"none; models run on the CPU{built}")
        return
    names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    yield Diagnosis("GPU", OK, f"{names}; models run there unless --device cpu is given")


def memory() -> Iterator[Diagnosis]:
    """Check how much memory is free, within the limit of a container."""
    import torch

    from ternvl.engine.settings import free_memory

    group, free = Cgroup(), free_memory(torch.device("cpu"))
    found = f"{shown_bytes(free)} free"
    if (limit := group.memory()) is not None:
        found += f", with a cgroup's limit of {shown_bytes(limit)}"
    if free < _LEAST_MEMORY:
        yield Diagnosis(
            "Memory", FAIL, found, f"Free memory: even the embedded model needs {shown_bytes(_LEAST_MEMORY)}."
        )
    elif free < _SMALL_MEMORY:
        yield Diagnosis("Memory", NOTE, found, "It is little for InternVL3-1B; see `ternvl info` and --max-model-len.")
    else:
        yield Diagnosis("Memory", OK, found)


def huge_pages() -> Iterator[Diagnosis]:
    """Check whether the system gives huge pages, from which weights are read faster."""
    try:
        text = _HUGE_PAGES.read_text()
    except OSError:
        yield Diagnosis("Huge pages", OK, "this system does not have them, which is no fault")
        return
    chosen = text.partition("[")[2].partition("]")[0]
    if chosen == "never":
        yield Diagnosis("Huge pages", NOTE, "never", f"As root: echo madvise > {_HUGE_PAGES}; tokens then come faster.")
    else:
        yield Diagnosis("Huge pages", OK, chosen)


def disks() -> Iterator[Diagnosis]:
    """Check the folders of downloads, of quantised models and of kernels: room, and whether they can be written."""
    from huggingface_hub.constants import HF_HUB_CACHE

    from ternvl.quant.file import cache_folder

    yield _disk("Downloads", Path(HF_HUB_CACHE), "HF_HOME", _SMALL_DISK)
    yield _disk("Quantised models", cache_folder(), "XDG_CACHE_HOME", _SMALL_DISK)


def _disk(name: str, folder: Path, variable: str, least: int) -> Diagnosis:
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    free = shutil.disk_usage(there).free
    found = f"{folder}, {shown_bytes(free)} free"
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        found += f", but it cannot be written to: {error.strerror}"
        return Diagnosis(name, NOTE, found, f"Let {variable} name another folder.")
    if free < least:
        return Diagnosis(name, NOTE, found, f"Free space, or let {variable} name a folder on another disk.")
    return Diagnosis(name, OK, found)
