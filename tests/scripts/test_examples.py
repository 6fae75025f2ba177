"""The examples of the documentation are what the embedded model answers, and the page of the endpoints shows them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ternvl.llm import LLM
from tests.scripts.module import script as load_script
from tests.server.fakes import serving

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES: dict[str, Any] = json.loads((ROOT / "ternvl/server/docs/examples.json").read_text(encoding="utf-8"))
OWN = {
    "id",
    "request_id",
    "created",
    "created_at",
    "system_fingerprint",
    "prompt_tokens_details",
    "input_tokens_details",
}
"""What each answer has of its own, or what depends on those before it."""


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with serving(LLM()) as url, httpx.Client(base_url=url, timeout=110) as client:
        yield client


def lasting(value: Any) -> Any:
    """An answer without what changes from one to the next, its numbers rounded."""
    if isinstance(value, dict):
        return {name: lasting(item) for name, item in value.items() if name not in OWN}
    if isinstance(value, list):
        return [lasting(item) for item in value]
    return round(value, 2) if isinstance(value, float) else value


@pytest.mark.parametrize("name", [name for name in EXAMPLES if "request" in EXAMPLES[name]])
def test_the_answer_is_real(http: httpx.Client, name: str) -> None:
    path = name.partition(" ")[2]
    answer = http.post(path, json=EXAMPLES[name]["request"]).raise_for_status().json()
    expected = lasting(EXAMPLES[name]["answer"])
    if path == "/v1/messages":
        for usage in (answer["usage"], expected["usage"]):
            usage["input_tokens"] += usage.pop("cache_read_input_tokens")
    assert lasting(answer) == expected


@pytest.fixture(scope="module")
def script() -> Any:
    return load_script("examples")


def test_the_page_of_adapters_shows_what_they_answer(script: Any) -> None:
    page = (ROOT / "docs/lora.md").read_text(encoding="utf-8")
    assert '"objects": ["red circle", "blue square"]' in page
    assert script.with_adapters(page) == page


def test_the_page_of_the_server_shows_every_sampling_parameter(script: Any) -> None:
    page = (ROOT / "docs/server.md").read_text(encoding="utf-8")
    assert "| `temperature` | number, 0 to 2 | " in page
    assert script.with_parameters(page) == page


def test_the_page_shows_every_example(script: Any) -> None:
    assert script.page(EXAMPLES) == (ROOT / "docs/endpoints.md").read_text(encoding="utf-8")
