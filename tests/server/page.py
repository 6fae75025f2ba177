"""The hosted model's page, where a checkout has it beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).resolve().parents[2] / "../shared/seed.txt"


def page_schema() -> dict[str, Any]:
    """The page's JSON Schema of Chat Completions. Skips the test where the page is missing."""
    if not PAGE.is_file():
        pytest.skip("the page is not here")
    value: dict[str, Any] = json.loads(PAGE.read_text(encoding="utf-8").split("JSON Schema\n", 1)[1])
    return value
