"""The servers that the suites ask: of the embedded model, and of one that knows the answers to a few questions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ternvl.llm import LLM
from tests.clients.suites.knowing import call, knowing_llm
from tests.server.fakes import serving

NAMES = ("ternvl-nano", "nano")
PICTURE = Path(__file__).resolve().parents[3] / "docs" / "example.png"
ROME, PARIS = {"name": "Rome", "is_large": True}, {"name": "Paris", "is_large": True}
BOTH = "Rome has 18 degrees, Paris has 21."
CODE = "final_answer(6 * 7)"

ANSWERS = {
    "weather in Rome": [call("get_weather", city="Rome", days=1)],
    "after 1 days": [call("get_weather", city="Paris", days=2)],
    "after 2 days": [BOTH, call("final_answer", answer=BOTH)],
    "weather in both": [call("get_weather", city="Rome", days=3) + "\n" + call("get_weather", city="Paris", days=4)],
    "after 3 days": [BOTH, call("final_answer", answer=BOTH)],
    "after 4 days": [BOTH, call("final_answer", answer=BOTH)],
    "Hand this over": [call("transfer_to_expert")],
    'assistant": "expert': ["I am the expert."],
    "Name a capital": [json.dumps(ROME)],
    "Name a few capitals": [
        json.dumps({"tasks": [ROME, PARIS]}),
        call("IterableCapital", tasks=[ROME, PARIS]),
        call("Capital", **ROME) + "\n" + call("Capital", **PARIS),
    ],
    "Guess a number": [call("Guess", number=3)],
    "number is too small": [call("Guess", number=12)],
    "six times seven": [f"Multiply.\n<code>\n{CODE}\n</code>", json.dumps({"thought": "Multiply.", "code": CODE})],
}
"""Conversations of several turns: calls, further ones after the result of the first, and an answer."""


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
async def one_event_loop(anyio_backend: str) -> None:
    """Keeps one loop for all tests, as an application does: clients keep connections from one test to the next."""


@pytest.fixture(scope="session")
def url(embedded: LLM) -> Iterator[str]:
    """A server of the embedded model."""
    with serving(embedded, served_model_name=NAMES) as address:
        yield address


@pytest.fixture(scope="session")
def knowing_url() -> Iterator[str]:
    """A server of a model that knows `ANSWERS`."""
    with serving(knowing_llm(ANSWERS), served_model_name=NAMES) as address:
        yield address


@pytest.fixture(scope="session")
def picture() -> bytes:
    return PICTURE.read_bytes()
