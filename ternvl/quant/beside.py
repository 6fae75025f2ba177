"""Converts a model in a process of its own while this one answers unquantised, for the next start."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from ternvl.errors import ConfigError
from ternvl.terminal import shown_bytes

log = logging.getLogger(__name__)

CHOICES = ("first", "beside")
_CONVERSION_BYTES = 2_200_000_000
"""The most memory that a conversion takes; docs/quantization.md has what was measured."""
_NICENESS = 10
_GRACE = 5.0
"""Seconds that a conversion has to end with this process."""


def check(conversion: str, locked: Path | None) -> None:
    """Raise ConfigError for an unknown choice, or for one that answers with other weights than a lock says."""
    if conversion not in CHOICES:
        raise ConfigError(f"conversion is {conversion!r}; it is one of {', '.join(CHOICES)}.")
    if conversion == "beside" and locked is not None:
        raise ConfigError("conversion is 'beside', but with a lock all answers must come from the locked weights.")


def why_first(weights_bytes: int, free_bytes: int) -> str:
    """Return why the conversion must come first after all, in words; an empty text if both fit into the memory."""
    needed = weights_bytes + _CONVERSION_BYTES
    if free_bytes >= needed:
        return ""
    return f"{shown_bytes(free_bytes)} of memory are free, and both together need {shown_bytes(needed)}"


def start(folder: Path, scheme: str, calibration: Path | None) -> threading.Thread:
    """Begin to convert a checkpoint at a low priority, and return the thread that waits for it and logs its end.

    The process ends with this one, and the next start writes an incomplete file again. Raises OSError if no
    process can be started.
    """
    command = [sys.executable, "-m", "ternvl", "quantize", str(folder), "--quantization", scheme]
    if calibration is not None:
        command += ["--calibration", str(calibration)]
    # In a session of its own its niceness would not count against this process: Linux schedules sessions as groups.
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    with suppress(AttributeError, OSError):  # other systems; a process that has ended
        os.setpriority(os.PRIO_PROCESS, process.pid, _NICENESS)
    atexit.register(_end, process)
    waiting = threading.Thread(target=_wait, args=(process, scheme), name="conversion", daemon=True)
    waiting.start()
    return waiting


def _wait(process: subprocess.Popen[bytes], scheme: str) -> None:
    _, errors = process.communicate()
    atexit.unregister(_end)
    lines = errors.decode(errors="replace").strip().splitlines()
    if process.returncode == 0:
        log.info("The conversion to %s is done; the next start uses it.", scheme)
    elif process.returncode != -signal.SIGTERM:  # this process ends
        log.warning(
            "The conversion to %s ended with a problem: %s",
            scheme,
            lines[-1] if lines else f"status {process.returncode}",
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
