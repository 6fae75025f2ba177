"""The README's requests, pasted as they stand, get the answers that the README shows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from training.evaluate import served

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
REQUESTS = re.findall(r"```bash\ncurl [^`]*?-d '(\{.*?\})'\n```\n+```(json|text)\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served(None) as address:
        yield address


def test_there_are_a_text_an_image_and_a_stream() -> None:
    bodies = [json.loads(body) for body, _, _ in REQUESTS]
    assert len(bodies) == 3
    assert any("image_url" in json.dumps(body) for body in bodies)
    assert [body.get("stream", False) for body in bodies].count(True) == 1


@pytest.mark.parametrize(("body", "kind", "shown"), REQUESTS)
def test_the_answer_is_the_one_shown(address: str, body: str, kind: str, shown: str) -> None:
    reply = httpx.post(
        f"{address}/v1/chat/completions", content=body, headers={"content-type": "application/json"}, timeout=60
    )
    assert reply.status_code == 200
    if kind == "json":
        assert content_of(reply.json()) == content_of(json.loads(shown))
    else:
        assert streamed(reply.text) == streamed(shown)


def content_of(answer: dict[str, Any]) -> tuple[str, str]:
    choice = answer["choices"][0]
    return choice["message"]["content"], choice["finish_reason"]


def streamed(text: str) -> list[dict[str, Any]]:
    """The deltas of a stream; it must end as the protocol says."""
    events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    return [json.loads(event)["choices"][0]["delta"] for event in events[:-1]]
