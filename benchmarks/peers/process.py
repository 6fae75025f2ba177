"""The runner's side of a contestant's process."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Unavailable(Exception):
    """The contestant cannot take part; the message gives the reason."""


class Process:
    """A process that is started and loaded by the constructor. Each call waits, so only one process works at a time."""

    def __init__(self, command: Sequence[str], *, root: Path, log: Path) -> None:
        """Raises Unavailable if the worker does not become ready."""
        environment = os.environ | {"PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        self._start = time.perf_counter()
        with log.open("ab") as errors:
            try:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
                )
            except OSError as error:  # its environment was deleted
                raise Unavailable(f"{command[0]} cannot be run: {error.strerror}") from error
        message = self._read()
        self.ready_s = time.perf_counter() - self._start
        if "ready" not in message:
            self.close()
            raise Unavailable(message.get("unavailable") or message["error"])
        self.version: str = message["ready"]["version"]
        self.decode_bytes: int | None = message["ready"]["decode_bytes"]

    @property
    def is_alive(self) -> bool:
        """Whether the process is still running."""
        return self._process.poll() is None

    def since_start(self) -> float:
        """Seconds since the process was started."""
        return time.perf_counter() - self._start

    def ask(self, asks: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Send asks; return the response, which has answers or an error."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"asks": list(asks)}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return {"error": "the process has ended"}
        return self._read()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # other lines are output of libraries that are imported
                message: dict[str, Any] = json.loads(line)
                return message
        return {"error": f"the process ended with status {self._process.wait()}"}
