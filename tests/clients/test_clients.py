"""Every client does every feature: text, image, stream, an error, a cancelled stream."""

from __future__ import annotations

import base64
import io
import time
from typing import Any

import pytest
from PIL import Image

from ternvl.llm import LLM
from ternvl.types import SamplingParams
from tests.clients.adapters import CLIENTS, IMAGE_QUESTION

QUESTION = "Name the european capitals"
PARAMS = SamplingParams(temperature=0, max_tokens=24)


@pytest.fixture(params=CLIENTS, ids=lambda each: each.__name__)
def client(request: pytest.FixtureRequest, address: str, record_property: Any) -> Any:
    name = (request.param.__doc__ or "").rstrip(".")
    record_property("client", name)
    record_property("feature", request.node.originalname.removeprefix("test_").replace("_", " "))
    try:
        return request.param(address)
    except (ImportError, FileNotFoundError) as error:
        pytest.skip(f"{name}: {error}")


def red_square() -> Image.Image:
    return Image.new("RGB", (64, 64), "red")


def data_uri() -> str:
    data = io.BytesIO()
    red_square().save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def test_text(client: Any, answers: dict[str, str]) -> None:
    assert client.text(QUESTION) == answers["text"]


def test_image(client: Any, answers: dict[str, str]) -> None:
    assert client.text(IMAGE_QUESTION, data_uri()) == answers["image"]


def test_stream(client: Any, answers: dict[str, str]) -> None:
    pieces = list(client.stream(QUESTION))
    assert "".join(pieces) == answers["text"]
    assert len([piece for piece in pieces if piece]) > 1


def test_error(client: Any) -> None:
    assert client.error() == 404


def test_cancelled_stream(client: Any, embedded: LLM) -> None:
    client.cancel()
    for _ in range(1000):
        if not embedded.engine.has_work:
            break
        time.sleep(0.01)
    stats = embedded.engine.stats()
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    assert stats.num_free_blocks == stats.num_blocks


@pytest.fixture(scope="session")
def answers() -> dict[str, str]:
    """What the offline API says to the same questions."""
    llm = LLM(max_model_len=4096)
    image = {"type": "image", "image": red_square()}
    turns: list[Any] = [
        [{"role": "user", "content": QUESTION}],
        [{"role": "user", "content": [{"type": "text", "text": IMAGE_QUESTION}, image]}],
    ]
    text, seen = (output.text for output in llm.chat(turns, PARAMS))
    return {"text": text, "image": seen}
