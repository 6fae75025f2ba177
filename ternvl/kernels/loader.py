"""Finds, loads and checks the compiled kernels: `library()` is None where torch has to compute instead.

It also starts and ends teams of OpenMP threads, which the kernels share with torch.

The environment variable `TERNVL_KERNELS` chooses: `auto` (the default) takes the best instruction set that the CPU has,
`torch` takes none, and the name of an instruction set, such as `avx2` or `neon`, takes that one.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch  # also loads the OpenMP library whose threads the kernels share
from torch import Tensor
from torch.nn import functional as F

from ternvl.errors import ConfigError
from ternvl.kernels import build

log = logging.getLogger(__name__)

VARIABLE = build.VARIABLE
CHOICES = ("auto", "torch", *build.X86_FLAGS, *build.ARM_FLAGS)

Pointer, Int, Int64, Float = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float
_GRAIN = 2**16  # numbers for which torch takes another thread, and as many again
_SOFT = 1  # keeps what can be kept: `omp_pause_soft`
PACK_LINEAR = (Pointer, Int, Int64, Int64, Pointer, Int)
LINEAR = (Pointer, Int64, Int64, Int64, Pointer, Int, Int64, Pointer, Pointer, Int)
"""The arguments of the two functions that `load` checks a library with."""


class Library:
    """The compiled kernels of one instruction set."""

    def __init__(self, isa: str) -> None:
        """Raises OSError if there is no library for the instruction set, or if it cannot be loaded."""
        path = build.find(isa)
        if path is None:
            raise OSError(f"there is no library for {isa}")
        self.isa = isa
        self._library = ctypes.CDLL(str(path))
        self._functions: dict[str, Any] = {}

    def function(self, name: str, *arguments: Any, result: Any = None) -> Any:
        """Return an exported function, given the types of its arguments. Raises AttributeError for an unknown name."""
        if name not in self._functions:
            function = self._library[name]
            function.argtypes, function.restype = arguments, result
            self._functions[name] = function
        return self._functions[name]


def available() -> bool:
    """Return whether the native kernels are used. Raises ConfigError as `library` does."""
    return library() is not None


def is_loaded() -> bool:
    """Return whether the native kernels are in use already. Unlike `available`, it builds and loads nothing."""
    return bool(load.cache_info().currsize) and available()


def library() -> Library | None:
    """Return the library that `TERNVL_KERNELS` chooses, or None if torch is chosen or no library can be used.

    Raises ConfigError if the value is unknown or names an instruction set that this CPU does not have.
    """
    choice = os.environ.get(VARIABLE, "auto")
    if choice not in CHOICES:
        raise ConfigError(f"{VARIABLE} is {choice!r}; it is one of {', '.join(CHOICES)}.")
    return None if choice == "torch" else load(choice)


@cache
def load(choice: str) -> Library | None:
    """Return the library of an instruction set, or of the CPU's best for "auto".

    Each choice is tried once. If its library cannot be built, loaded or trusted, a warning is logged and the result is
    None. Raises ConfigError as `library` does.
    """
    try:
        here = build.isas_here()
        if choice != "auto" and choice not in here:
            raise ConfigError(f"{VARIABLE} is {choice!r}, but this CPU has only {', '.join(here)}.")
        loaded = Library(_built(here[-1] if choice == "auto" else choice))
        _check(loaded)
    except (OSError, AttributeError, build.BuildError) as error:
        log.warning("The native kernels cannot be used (%s); torch computes instead, slower.", error)
        return None
    return loaded


def instruction_set(device: torch.device) -> str:
    """Return the instruction set of the kernels, "torch" without kernels, or the name of the GPU."""
    if device.type != "cpu":
        return torch.cuda.get_device_name(device)
    loaded = library()
    return "torch" if loaded is None else loaded.isa


def why_chosen() -> str:
    """Return why this process has the kernels that it has, or none, in words."""
    choice = os.environ.get(VARIABLE, "auto")
    if choice == "torch":
        return f"{VARIABLE} chooses none"
    if library() is None:
        return "they cannot be built or loaded"
    return "the best that this CPU has" if choice == "auto" else f"{VARIABLE} chooses them"


def torch_capability() -> str:
    """Return the vector instructions that torch uses and the maker of the CPU, such as "AVX2 on AuthenticAMD".

    Torch's matrix library chooses its code by both, so the last bits of what torch computes depend on them.
    """
    return f"{torch.backends.cpu.get_cpu_capability()} on {_cpu_maker()}"


def _cpu_maker() -> str:
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.is_file() else ""
    found = re.search(r"^vendor_id\s*: (.+)$", text, re.MULTILINE)
    return found[1] if found else platform.machine()


def release_team() -> None:
    """End the OpenMP threads that wait for work of the calling thread; they start again when it has some.

    Every thread that computes has a team of its own. libgomp lets waiting threads spin for milliseconds, which hands
    work over without delay, but only for an instant if the process has more OpenMP threads than processors. So a thread
    that will not compute for a while gives its team up to the thread that will. It takes less than 0.1 ms; without
    kernels, or with an OpenMP library that cannot do it, nothing happens.
    """
    if is_loaded():
        with suppress(AttributeError):
            ctypes.CDLL(None).omp_pause_resource_all(_SOFT)


def start_team() -> None:
    """Start the OpenMP threads of the calling thread. libgomp would end the process if it failed to later."""
    torch.zeros(torch.get_num_threads() * _GRAIN).add_(1)


@contextmanager
def alone() -> Iterator[None]:
    """Compute in the context without a team, for threads that seldom compute: libgomp ends a process that gets none."""
    before = torch.get_num_threads()
    set_num_threads(1)
    try:
        yield
    finally:
        set_num_threads(before)


def set_num_threads(num_threads: int) -> None:
    """Set the number of OpenMP threads of the calling thread alone; `torch.set_num_threads` sets that of all."""
    with suppress(AttributeError):
        ctypes.CDLL(None).omp_set_num_threads(num_threads)


def _built(isa: str) -> str:
    """Build the library of an instruction set if it is not up to date. Raises build.BuildError."""
    if build.build(isa):
        log.info("Built the native kernels for %s.", isa)
    return isa


def _check(loaded: Library) -> None:
    """Compute one small product of whole numbers, which is exact in any order. Raises OSError if it is wrong."""
    weight = torch.arange(-60, 60, dtype=torch.float32).view(20, 6)
    x = torch.arange(42, dtype=torch.float32).view(7, 6)
    if not torch.equal(_product(loaded, x, weight), x @ weight.T):
        raise OSError(f"the library for {loaded.isa} computes wrong results")


def _product(loaded: Library, x: Tensor, weight: Tensor) -> Tensor:
    """x [M, K] and weight [N, K], both contiguous float32 -> [M, N], on one thread."""
    (m, k), n = x.shape, len(weight)
    panels, out = F.pad(weight, (0, 0, 0, -n % 16)), x.new_empty(m, n)
    loaded.function("ternvl_pack_linear", *PACK_LINEAR)(weight.data_ptr(), 4, n, k, panels.data_ptr(), 1)
    linear = loaded.function("ternvl_linear", *LINEAR)
    linear(x.data_ptr(), m, k, k, panels.data_ptr(), 4, n, None, out.data_ptr(), 1)
    return out
