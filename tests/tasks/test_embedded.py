"""The embedded model does what it has learned: through a live server and in this process, on both kinds of clients."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import pydantic
import pytest
from PIL import Image

from ternvl.llm import LLM
from ternvl.tasks import PLAIN, AsyncTasks, Box, Tasks
from ternvl.tasks.prompts import OFFICIAL
from tests.server.fakes import serving
from training.evaluate import Question, questions

EXAMPLE = "docs/example.png"
ASKED = 5
"""The number of questions of each task of its card that are asked."""


class Inventory(pydantic.BaseModel):
    count: int
    objects: list[str]


@pytest.fixture(scope="module")
def llm() -> LLM:
    llm = LLM()
    llm.load_adapter("inventory", "inventory")
    return llm


@pytest.fixture(scope="module")
def url(llm: LLM) -> Iterator[str]:
    with serving(llm) as address:
        yield f"{address}/v1"


@pytest.fixture(scope="module", params=["server", "in process"])
def tasks(request: pytest.FixtureRequest, llm: LLM, url: str) -> Iterator[Tasks]:
    with Tasks(url) if request.param == "server" else Tasks(llm) as tasks:
        yield tasks


def picture_of(question: Question) -> Image.Image:
    assert question.image is not None
    return question.image


def overlap(a: Box, b: tuple[float, float, float, float]) -> float:
    width = min(a.x2, b[2]) - max(a.x1, b[0])
    height = min(a.y2, b[3]) - max(a.y1, b[1])
    shared = max(0, width) * max(0, height)
    return shared / (a.area + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def test_it_finds(tasks: Tasks) -> None:
    total = 0.0
    for question in questions("box (mean IoU)", True, ASKED):
        image = picture_of(question)
        name = re.findall("<ref>(.*)</ref>", question.turn.question)[0]
        edges = [int(number) / 1000 for number in re.findall(r"\d+", question.turn.answer)]
        truth = (edges[0] * image.width, edges[1] * image.height, edges[2] * image.width, edges[3] * image.height)
        (box,) = tasks.ground(image, name)
        total += overlap(box, truth)
    point = tasks.point(image, name)
    assert max(abs(point.x - box.center.x), abs(point.y - box.center.y)) <= 1
    assert total / ASKED > 0.15  # 0.26 of these; its card says 0.48 of 300


def test_it_reads_and_counts(tasks: Tasks) -> None:
    read = [tasks.text(picture_of(each)) == each.turn.answer for each in questions("text read whole", True, ASKED)]
    assert sum(read) >= 0.5 * ASKED  # its card says 80 %
    counted = [
        tasks.count(picture_of(each), "objects") == int(each.turn.answer)
        for each in questions("counted (0 to 5)", True, ASKED)
    ]
    assert sum(counted) >= 0.8 * ASKED  # its card says 98 %


def test_it_tells_and_chooses(tasks: Tasks) -> None:
    for question in questions("existence", True, 3):
        assert tasks.yes_no(picture_of(question), question.turn.question) == (question.turn.answer == "Yes.")
    for question in questions("color of", True, 3):
        wanted = question.turn.answer.strip(".").lower()
        options = [
            "red",
            "green",
            "blue",
            "yellow",
            "orange",
            "purple",
            "pink",
            "brown",
            "black",
            "white",
            "gray",
            "cyan",
        ]
        assert tasks.choose(picture_of(question), question.turn.question, options) == wanted
    assert tasks.caption(EXAMPLE) == "A red circle and a blue square."
    assert [box.label for box in tasks.detect(EXAMPLE, ["red circle", "blue square"])] == ["red circle", "blue square"]
    passed = [
        finding.passed for finding in tasks.inspect(EXAMPLE, ["Is there a red circle?", "Is there a green star?"])
    ]
    assert passed == [True, False]


def test_an_adapter_reads_into_an_object(llm: LLM, url: str) -> None:
    wanted = Inventory(count=2, objects=["red circle", "blue square"])
    for server in (url, llm):
        with Tasks(server, model="inventory") as tasks:
            assert tasks.read(EXAMPLE, Inventory, "Describe the image.") == wanted
            assert tasks.read(EXAMPLE, Inventory.model_json_schema(), "Describe the image.") == wanted.model_dump()


def test_the_schema_holds_the_answer(tasks: Tasks) -> None:
    schema = {"type": "object", "properties": {"color": {"enum": ["red", "green"]}}, "required": ["color"]}
    assert tasks.read(EXAMPLE, schema)["color"] in ("red", "green")


def test_event_loops_get_the_same(llm: LLM, url: str) -> None:
    async def ask(server: Any) -> list[Any]:
        async with AsyncTasks(server) as tasks:
            return await asyncio.gather(
                tasks.ground(EXAMPLE, "red circle"),
                tasks.detect(EXAMPLE, ["red circle", "blue square"]),
                tasks.count(EXAMPLE, "objects", max_tiles=1),
                tasks.views([EXAMPLE], "What do you see?"),
                tasks.compare([EXAMPLE, EXAMPLE]),
            )

    results = asyncio.run(ask(url))
    assert results == asyncio.run(ask(llm))
    assert results[2] == 2
    with Tasks(llm) as tasks:
        assert results[4] == tasks.compare([EXAMPLE, EXAMPLE])


def test_tiles_reach_the_model(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    image, counts, chat = Image.new("RGB", (400, 100), "white"), [], llm.chat

    def counted(*given: Any, **named: Any) -> Any:
        outputs = chat(*given, **named)
        counts.extend(output.prompt.num_image_tokens for output in outputs)
        return outputs

    monkeypatch.setattr(llm, "chat", counted)
    for tiles in (1, 2, 4):
        Tasks(llm).caption(image, max_tiles=tiles)
    tokens = llm.config.tokens_per_tile
    assert counts == [tokens, 3 * tokens, 5 * tokens]


def test_the_embedded_model_is_asked_plainly(llm: LLM, url: str) -> None:
    assert Tasks(llm)._settings().prompts is PLAIN
    assert Tasks(url)._settings().prompts is PLAIN
    assert Tasks(url, model="inventory")._settings().prompts is PLAIN
    assert Tasks(url, prompts=OFFICIAL)._settings().prompts is OFFICIAL
