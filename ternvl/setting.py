"""The fields of configurations from which the command line generates its flags (`ternvl/cli/flags.py`)."""

from __future__ import annotations

from dataclasses import field
from typing import TypeVar

_T = TypeVar("_T")


def setting(default: _T, help: str, *, env: str | None = None, secret: bool = False, flag: bool = True) -> _T:
    """Return a dataclass field that is also a flag of the command line.

    `help` is the flag's text in `--help`, `env` an environment variable that may set it. A secret is left out of the
    configuration's `repr`. Without a `flag` only the environment variable sets it, because other users of a machine can
    read the arguments of its processes.
    """
    metadata = {"help": help, "env": env, "flag": flag}
    return field(default=default, repr=not secret, metadata=metadata)
