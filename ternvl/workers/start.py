"""Starts worker processes: those that decode images and videos, and that try grammars."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import IO, Any

from ternvl.errors import UnavailableError

_ROOT = Path(__file__).parents[2]
"""The folder of the package."""

_KEPT = ("HOME", "LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR", "VIRTUAL_ENV")
"""Variables that a process may need. Others, such as keys, do not concern it."""


_NO_PROCESS = "The system allows the server no further process ({}): a limit of processes or of memory is reached."


def start(module: str, settings: Any, stdin: IO[bytes] | int) -> Popen[bytes]:
    """Run a module with its settings, a dataclass, as JSON, and its output piped.

    It starts in a session of its own, which keeps Ctrl-C in a terminal, that lets a server finish its requests, away
    from it.
    """
    paths = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    command = [sys.executable, "-P", "-m", module, json.dumps(asdict(settings))]
    environment = kept | {"PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1"}
    try:
        return Popen(command, stdin=stdin, stdout=PIPE, stderr=DEVNULL, env=environment, start_new_session=True)
    except OSError as error:
        raise UnavailableError(_NO_PROCESS.format(error.strerror)) from error
