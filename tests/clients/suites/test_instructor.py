"""`instructor`: structured answers through tools, JSON and JSON Schemas, whole, in parts, as lists."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from tests.clients.adapters.asking import Capital
from tests.clients.suites.conftest import NAMES

instructor: Any = pytest.importorskip("instructor", reason="instructor is not installed")

pytestmark = pytest.mark.filterwarnings("default")  # its own deprecations, and those of what it imports
ASK: Any = {"model": NAMES[0], "messages": [{"role": "user", "content": "Name a capital"}], "max_tokens": 200}


def client(url: str, mode: str) -> Any:
    from anthropic import Anthropic
    from openai import OpenAI

    if mode.startswith("ANTHROPIC"):
        return instructor.from_anthropic(
            Anthropic(base_url=url, api_key="none", max_retries=0), mode=instructor.Mode[mode]
        )
    return instructor.from_openai(
        OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0), mode=instructor.Mode[mode]
    )


@pytest.mark.parametrize("mode", ["TOOLS", "TOOLS_STRICT", "JSON_SCHEMA", "RESPONSES_TOOLS", "ANTHROPIC_TOOLS"])
def test_an_answer_of_a_model(url: str, mode: str) -> None:
    answer, raw = client(url, mode).create_with_completion(response_model=Capital, max_retries=0, **ASK)
    assert isinstance(answer, Capital)
    assert 5 < (raw.usage.output_tokens if "prompt" not in str(raw.usage) else raw.usage.completion_tokens) <= 200


@pytest.mark.parametrize("mode", ["JSON", "MD_JSON", "ANTHROPIC_JSON"])
def test_json_that_only_a_model_with_understanding_gives(knowing_url: str, mode: str) -> None:
    answer = client(knowing_url, mode).create(response_model=Capital, max_retries=0, **ASK)
    assert answer.model_dump() == {"name": "Rome", "is_large": True}


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA", "ANTHROPIC_TOOLS"])
def test_a_stream_of_partial_answers(url: str, mode: str) -> None:
    parts = list(client(url, mode).create_partial(response_model=Capital, max_retries=0, **ASK))
    assert len(parts) > 3
    Capital.model_validate(parts[-1].model_dump())


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA"])
def test_a_list(knowing_url: str, mode: str) -> None:
    asked = {**ASK, "messages": [{"role": "user", "content": "Name a few capitals"}]}
    found = list(client(knowing_url, mode).create_iterable(response_model=Capital, max_retries=0, **asked))
    assert found == [Capital(name="Rome", is_large=True), Capital(name="Paris", is_large=True)]


def test_a_second_try_after_a_wrong_answer(knowing_url: str) -> None:
    """It sends the answer back with what is wrong in it, as the result of the call."""
    from pydantic import BaseModel, field_validator

    class Guess(BaseModel):
        number: int

        @field_validator("number")
        @classmethod
        def is_large(cls, value: int) -> int:
            if value < 10:
                raise ValueError("the number is too small")
            return value

    for mode in ("TOOLS", "ANTHROPIC_TOOLS"):
        asked = {**ASK, "messages": [{"role": "user", "content": "Guess a number"}]}
        assert client(knowing_url, mode).create(response_model=Guess, max_retries=2, **asked).number == 12


def test_image(url: str, picture: bytes) -> None:
    image = "data:image/png;base64," + base64.b64encode(picture).decode()
    for mode in ("TOOLS", "ANTHROPIC_TOOLS"):
        content = ["Name a capital", instructor.Image.from_base64(image)]
        asked = {**ASK, "messages": [{"role": "user", "content": content}]}
        answer = client(url, mode).create(response_model=Capital, max_retries=0, **asked)
        assert isinstance(answer, Capital)


def test_errors(url: str) -> None:
    from instructor.core import InstructorRetryException

    for mode, text in (("TOOLS", "maximum context length is 4096"), ("ANTHROPIC_TOOLS", "prompt is too long")):
        for asked, what in (
            ({**ASK, "model": "none"}, "404"),
            ({**ASK, "messages": [{"role": "user", "content": "y " * 9000}]}, text),
        ):
            with pytest.raises(InstructorRetryException) as failure:
                client(url, mode).create(response_model=Capital, max_retries=0, **asked)
            assert what in str(failure.value)
