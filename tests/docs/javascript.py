"""Runs the JavaScript of the documentation in a folder with the package, as the documentation installs it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INSTALL = "npm install path/to/ternvl/clients/js"
"""The command that the documentation shows."""
_QUIET = {"npm_config_offline": "true", "npm_config_audit": "false", "npm_config_fund": "false"}


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """A folder of a user's own. The package has no dependencies, so npm needs no network."""
    folder = tempfile.TemporaryDirectory()
    command = shlex.split(INSTALL.replace("path/to/ternvl", str(ROOT)))
    done = subprocess.run(
        command, cwd=folder.name, env=os.environ | _QUIET, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return folder


def run(code: str, address: str) -> str:
    """What a program prints that asks the server at `address`. Its failures fail the test."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed; it runs the JavaScript of the documentation")
    program = Path(_folder().name) / "snippet.mjs"
    program.write_text(code.replace("http://127.0.0.1:8000", address), encoding="utf-8")
    environment = os.environ | {"TERNVL_BASE_URL": f"{address}/v1"}
    done = subprocess.run(
        ["node", program.name], cwd=program.parent, env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout
