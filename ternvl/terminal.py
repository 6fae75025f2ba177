"""What people see in a terminal: sizes and counts in words, and progress bars."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from ternvl.types import Progress

T = TypeVar("T")


def shown_bytes(size: int) -> str:
    """Return a size in bytes as text with a unit, such as "1.2 GB"."""
    unit = next((unit for unit in ("kB", "MB") if size < 1000 ** (2 + (unit == "MB"))), "GB")
    return f"{size / {'kB': 1e3, 'MB': 1e6, 'GB': 1e9}[unit]:.1f} {unit}"


def shown_count(number: int) -> str:
    """Return a count as text, such as "938 million", or all digits of one below a million."""
    for name, unit in (("billion", 10**9), ("million", 10**6)):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number:,}"


def is_watched() -> bool:
    """Return whether standard error is a terminal. Commands show progress bars only there."""
    return sys.stderr.isatty()


@contextmanager
def progress_bar(title: str, *, is_wanted: bool) -> Iterator[Progress]:
    """Show a progress bar on standard error, if it `is_wanted`, while the context is open.

    Yields the function that moves the bar.
    """
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), disable=not is_wanted) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def with_progress(title: str, work: Callable[[Progress | None], T], *, is_wanted: bool) -> T:
    """Return the result of `work`, which takes the function that moves a progress bar, or None if none `is_wanted`."""
    if not is_wanted:
        return work(None)
    with progress_bar(title, is_wanted=True) as progress:
        return work(progress)
