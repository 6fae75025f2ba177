"""The command line, whose commands `docs/cli.md` lists.

Nothing is imported here, so that `main` can handle signals before the slow imports begin.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from ternvl.cli import signals

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit. An error is one line on standard error; its status is 2 for wrong usage, otherwise 1.

    SIGINT and SIGTERM end the process at once, except while a command handles them itself.
    """
    with signals.ending_at_once():
        from ternvl.cli.app import run_command

        run_command(arguments)
