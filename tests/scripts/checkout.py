"""A copy of the repository's scripts in a folder of its own, with a stand-in for Python that records its calls."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

STAND_IN = """#!/usr/bin/env bash
case "$1 $2" in
  "-c "*version_info*) echo "$0" ;;
  "-c "*cache_tag*) echo "${TAG:-cpython-311}" ;;
  "-m venv")
    bin="${@: -1}/bin"
    mkdir -p "$bin" && cp "$0" "$bin/python" && cp "$0" "$bin/ternvl" && echo "$*" >>"$LOG"
    ;;
  "-m ternvl.kernels.build") echo "$*" >>"$LOG" ;;
  "-m pip") echo "$*" >>"$LOG"; exit "${PIP_STATUS:-0}" ;;
  "-m pytest" | serve*) echo "$*" >>"$LOG" ;;
esac
"""


class Checkout:
    """A copy of the scripts and of what scripts/install reads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.log = root / "log"
        self.python = root / "python"
        self.python.write_text(STAND_IN)
        self.python.chmod(0o755)
        (root / "scripts").mkdir()
        for name in ("install", "serve", "test"):
            shutil.copy(ROOT / "scripts" / name, root / "scripts" / name)
        for name in ("pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, root / name)

    def install(self, *extras: str, **env: str) -> subprocess.CompletedProcess[str]:
        return self.run("scripts/install", *extras, **env)

    def run(self, script: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        defaults = {"PYTHON": str(self.python), "LOG": str(self.log)}
        return subprocess.run(
            [str(self.root / script), *arguments],
            cwd="/",
            env=os.environ | defaults | env,
            capture_output=True,
            text=True,
            timeout=30,
        )

    def calls(self) -> list[str]:
        """What was asked of Python since the last look, the kernels apart."""
        return [call for call in self.all_calls() if "kernels" not in call]

    def all_calls(self) -> list[str]:
        calls = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return calls
