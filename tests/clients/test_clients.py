"""Every client does every feature: text, image, stream, tools, JSON schema, errors, cancelled streams; most, video."""

from __future__ import annotations

import base64
import gc
import io
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ternvl.llm import LLM
from ternvl.params import SamplingParams
from tests.clients.adapters import CLIENTS
from tests.clients.adapters.asking import IMAGE_QUESTION, TOOL, Capital, Weather
from tests.prompt.videos import animation, uri

TABLE = Path(__file__).resolve().parents[2] / "docs" / "clients.md"
QUESTION = "Name the european capitals"
VIDEO_QUESTION = "What happens in this video?"
PARAMS = SamplingParams(temperature=0, max_tokens=24)


# Some clients leave sockets to the garbage collector, which finds them in whatever test runs then.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module", autouse=True)
def sockets_left_by_clients() -> Iterator[None]:
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


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


def video_uri() -> str:
    return uri(animation([Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]), "image/gif")


def data_uri() -> str:
    data = io.BytesIO()
    red_square().save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def test_text(client: Any, answers: dict[str, str]) -> None:
    assert client.text(QUESTION) == answers["text"]


def test_image(client: Any, answers: dict[str, str]) -> None:
    assert client.text(IMAGE_QUESTION, data_uri()) == answers["image"]


def test_video(client: Any, answers: dict[str, str]) -> None:
    if not hasattr(client, "video"):
        pytest.skip("the client or its protocol knows no videos")
    assert client.video(VIDEO_QUESTION, video_uri()) == answers["video"]


def test_stream(client: Any, answers: dict[str, str]) -> None:
    pieces = list(client.stream(QUESTION))
    assert "".join(pieces) == answers["text"]
    assert len([piece for piece in pieces if piece]) > 1


def test_tools(client: Any) -> None:
    ((name, arguments),) = client.tools("What is the weather in Rome?")
    assert name == TOOL["function"]["name"]
    Weather.model_validate(arguments)


def test_streamed_tools(client: Any) -> None:
    ((name, arguments),), num_pieces = client.streamed_tools("What is the weather in Rome?")
    assert name == TOOL["function"]["name"]
    Weather.model_validate(arguments)
    assert num_pieces > 3


def test_JSON_schema(client: Any) -> None:
    Capital.model_validate(client.schema("Name a capital"))


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
    video = {"type": "video", "video": video_uri()}
    turns: list[Any] = [
        [{"role": "user", "content": QUESTION}],
        [{"role": "user", "content": [{"type": "text", "text": IMAGE_QUESTION}, image]}],
        [{"role": "user", "content": [{"type": "text", "text": VIDEO_QUESTION}, video]}],
    ]
    text, seen, watched = (output.text for output in llm.chat(turns, PARAMS))
    return {"text": text, "image": seen, "video": watched}


def test_table_of_the_documentation() -> None:
    table = (
        TABLE.read_text(encoding="utf-8").partition("<!-- clients:begin -->\n")[2].partition("<!-- clients:end -->")[0]
    )
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
    features = [name.removeprefix("test_").replace("_", " ") for name in globals() if name.startswith("test_")][:-1]
    assert rows[0] == features
    assert rows[2:] == [[(client.__doc__ or "").rstrip("."), *marks(client, features)] for client in CLIENTS]


def marks(client: type[Any], features: list[str]) -> list[str]:
    """What a client's row has: "yes" for all that it can ask."""
    return ["yes" if each != "video" or hasattr(client, "video") else "-" for each in features]
