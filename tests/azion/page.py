"""The two examples of the page, to the letter, and a way to run them with Node."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "clients" / "js"

TEXT = """\
const modelResponse = await Azion.AI.run("opengvlab-internvl3-1b-instruct", {
"stream": true,
"messages": [
{
"role": "system",
"content": "You are a helpful assistant."
},
{
"role": "user",
"content": "Name the european capitals"
}
]
})
"""

IMAGE = """\
const modelResponse = await Azion.AI.run("opengvlab-internvl3-1b-instruct", {
"stream": true,
"messages": [
{
"role": "system",
"content": "You are a helpful assistant."
},
{
"role": "user",
"content": [
{
"type": "text",
"text": "What is in this image?"
},
{
"type": "image_url",
"image_url": {
"url": "https://example.com/image.jpg"
}
}
]
}
]
})
"""


def request_of(example: str) -> dict[str, Any]:
    """The second argument of an example."""
    found = re.search(r"\{.*\}", example, re.DOTALL)
    assert found
    request: dict[str, Any] = json.loads(found[0])
    return request


def node(*arguments: str, cwd: Path, **environment: str) -> str:
    """What Node prints. Its warnings and failures fail the test."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("node is not installed; it runs the JavaScript client")
    result = subprocess.run(
        [program, *arguments], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=100
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    return result.stdout


def run_module(source: str, folder: Path, url: str) -> str:
    """What an ES module prints that may import the package by its name; `url` is the server's address."""
    (folder / "node_modules").mkdir()
    (folder / "node_modules" / "ternvl-azion").symlink_to(PACKAGE)
    (folder / "main.mjs").write_text(source, encoding="utf-8")
    return node("main.mjs", cwd=folder, TERNVL_BASE_URL=f"{url}/v1")
