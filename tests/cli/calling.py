"""Commands that run within this process, and what they should print."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ternvl.cli import main
from ternvl.llm import LLM
from ternvl.params import SamplingParams

GREEDY = ["--temperature", "0", "--max-tokens", "8"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, out, err


def user(text: str, *images: Image.Image) -> dict[str, Any]:
    parts = [{"type": "image", "image": image} for image in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def expected(llm: LLM, *messages: dict[str, Any]) -> str:
    return llm.chat(list(messages), SamplingParams(temperature=0, max_tokens=8))[0].text
