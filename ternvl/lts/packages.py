"""The versions of Python, of ternvl and of the packages that it uses."""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, requires, version

from ternvl.errors import ConfigError
from ternvl.version import __version__

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def used() -> dict[str, str]:
    """Return the versions of the installed packages that ternvl needs, directly or through others, and Python's.

    Packages of extras are left out, because only training and tests use them. Raises ConfigError if ternvl itself is
    not installed, so that its requirements are unknown.
    """
    if _version("ternvl") is None:
        raise ConfigError("ternvl is not installed, so the packages that it uses are not known.")
    found: dict[str, str] = {}
    todo = _needed("ternvl")
    while todo:
        name = todo.pop()
        installed = _version(name)
        if name not in found and installed is not None:  # else it is for another system
            found[name] = installed
            todo += _needed(name)
    python = f"{sys.implementation.name} {sys.version_info.major}.{sys.version_info.minor}"
    return {"python": python, **dict(sorted(found.items()))}


def line_difference(made_by: str) -> str | None:
    """Return a text if the lock was made by another release line (x.y) of ternvl, otherwise None."""
    old, new = (given.split(".")[:2] for given in (made_by, __version__))
    return None if old == new else f"ternvl: expected {'.'.join(old)}, found {__version__}"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _needed(name: str) -> list[str]:
    """The packages that a package requires without its extras."""
    lines = [line for line in requires(name) or () if not re.search(r"\bextra\s*==", line)]
    return [re.sub(r"[-_.]+", "-", match[0]).lower() for line in lines if (match := _NAME.match(line))]
