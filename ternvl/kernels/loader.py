"""Finds, loads and checks the compiled kernels: `library()`, None where torch has to serve.

`TERNVL_KERNELS` chooses: `auto` (default) the best that the CPU has, `torch` none, or `portable`,
`avx2`, `avx512`, `avx512vnni`.
"""

from __future__ import annotations

import ctypes
import logging
import os
from functools import cache

import torch  # also brings the OpenMP library whose threads the kernels share

from ternvl.errors import ConfigError
from ternvl.kernels import build, native
from ternvl.kernels.native import Library

log = logging.getLogger(__name__)

VARIABLE = "TERNVL_KERNELS"
CHOICES = ("auto", "torch", *build.X86_FLAGS)


def library() -> Library | None:
    """The library that `TERNVL_KERNELS` asks for; None where torch is to compute, by choice or for want of one.

    Raises ConfigError for a value that is unknown or an instruction set that this CPU does not have.
    """
    choice = os.environ.get(VARIABLE, "auto")
    if choice not in CHOICES:
        raise ConfigError(f"{VARIABLE} is {choice!r}; it is one of {', '.join(CHOICES)}.")
    return None if choice == "torch" else load(choice)


@cache
def load(choice: str) -> Library | None:
    """The library of an instruction set, "auto" for the CPU's best; tried once. Raises ConfigError as `library`."""
    try:
        _build()
        best = _best_isa()
        if choice != "auto" and choice not in _up_to(best):
            raise ConfigError(f"{VARIABLE} is {choice!r}, but this CPU has only {', '.join(_up_to(best))}.")
        loaded = Library(best if choice == "auto" else choice)
        _check(loaded)
    except (OSError, AttributeError, build.BuildError) as error:
        log.warning("The native kernels cannot be used (%s); torch computes instead, slower.", error)
        return None
    return loaded


def _build() -> None:
    if built := build.build():
        log.info("Built the native kernels for %s.", ", ".join(built))


def _best_isa() -> str:
    name: bytes = Library("portable").function("ternvl_best_isa", result=ctypes.c_char_p)()
    return name.decode()


def _up_to(best: str) -> list[str]:
    names = list(build.FLAGS)
    return names[: names.index(best) + 1]


def _check(loaded: Library) -> None:
    """One small product of whole numbers, which is exact in any order. Raises OSError where it is wrong."""
    weight = torch.arange(-60, 60, dtype=torch.float32).view(20, 6)
    x = torch.arange(42, dtype=torch.float32).view(7, 6)
    panels = native.pack(loaded, weight)
    if not torch.equal(native.linear(loaded, x, panels, 20), x @ weight.T):
        raise OSError(f"the library for {loaded.isa} computes wrong results")
